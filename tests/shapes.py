"""How the shapes in signatures are checked while testing: beartype, and a whole number will do for a float, as in Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
