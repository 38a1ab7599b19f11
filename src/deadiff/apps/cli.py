"""`deadiff`: the commands, each imported when it runs, so that help is instant; a user's mistake is one line and exit code 2."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deadiff import __version__
from deadiff.errors import DEADiffError

# name -> what it does. The command is the typer app `app` of apps/<name>_commands.py; those not installed are not listed.
COMMANDS = {
    "stylize": "Draw what a prompt says in the style of a reference picture.",
    "inspect": "Say what a checkpoint, an adapter, a model folder or a drawn PNG is.",
    "convert": "Turn the published checkpoint into a model folder.",
    "data": "Build and look at training data.",
    "train": "Train the parts of a model from a recipe.",
    "eval": "Measure a model as the paper does.",
    "bench": "Time the model on this machine.",
    "web": "Open the graphical app in a browser.",
    "serve": "Serve drawing over HTTP.",
}
MISTAKE, INTERRUPTED = 2, 130  # exit codes

# The bases of typer's own errors, by way of a public one: typer carries its own copy of click from 0.27 on.
_UsageError = typer.BadParameter.__bases__[0]
_ClickException: Any = _UsageError.__bases__[0]


def home(name: str) -> str:
    return f"deadiff.apps.{name}_commands"


class LazyGroup(TyperGroup):
    """Lists its commands from the table and imports the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = typer.main.get_command(importlib.import_module(home(name)).app)
            command.name = name
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Draw what a prompt says in the style of a reference picture.\n\n"
    'Example: deadiff stylize "a robot" --style ref.png\n\n'
    "Each command explains itself: deadiff COMMAND --help",
)


def show_version(value: bool) -> None:
    if value:
        typer.echo(f"deadiff {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and stop.")
    ] = False,
) -> None: ...


def _stand_in() -> None:
    """Replaced by the real command when it runs."""


for _name, _help in COMMANDS.items():
    if importlib.util.find_spec(home(_name)) is not None:
        app.command(_name, help=_help)(_stand_in)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 0, 2 for a mistake (one line on stderr), 130 for Ctrl-C."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    quiet()
    try:
        result = typer.main.get_group(app).main(args=arguments, prog_name="deadiff", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except DEADiffError as error:
        return complain(f"{type(error).__name__}: {error}")
    except _ClickException as error:
        text = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(text)
            return MISTAKE
        command = getattr(getattr(error, "ctx", None), "command_path", "deadiff")
        return complain(f"{text.rstrip('.')}: see {command} --help")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return complain("out of memory: ask for fewer pictures at once (--batch-size 1) or smaller ones")
    except RuntimeError as error:
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower():
            return complain("out of memory: ask for fewer pictures at once (--batch-size 1) or smaller ones")
        raise


def complain(text: str) -> int:
    typer.echo("error: " + " ".join(text.split()), err=True)
    return MISTAKE


def quiet() -> None:
    """Libraries' notices are not the user's business; our own warnings are, one line each. Environment variables override."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logger = logging.getLogger("deadiff")
    if not logger.handlers:
        handler = logging.Handler()
        handler.emit = lambda record: typer.echo(f"warning: {record.getMessage()}", err=True)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False


if __name__ == "__main__":  # accelerate launch -m deadiff.apps.cli train ...
    main()
