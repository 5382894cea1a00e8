"""The type checker that the import hook of conftest puts on every annotation of the library."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is asked for
