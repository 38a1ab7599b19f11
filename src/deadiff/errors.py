"""What a user can get wrong, by kind. Each message says: what, got, expected, next step, in one line."""


class DEADiffError(Exception):
    """The base of every error that is the input's fault; the command line prints it as one line and exits with 2."""


class ConfigError(DEADiffError):
    """An option, a recipe or a combination of options that cannot be used."""


class CheckpointError(DEADiffError):
    """Weights that are missing, of the wrong kind, truncated or of the wrong shape."""


class DataError(DEADiffError):
    """A data set, shard or cache that cannot be used."""


class ReferenceError(DEADiffError):  # public as deadiff.ReferenceError; nothing here uses the builtin
    """A reference picture that cannot be read or is refused."""


class MissingExtraError(DEADiffError):
    """An optional dependency is needed: the message names the `pip install 'deadiff[...]'` that brings it."""
