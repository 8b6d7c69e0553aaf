"""The tests, and the run-time checker of shapes and types that they switch on in `worldstereo`."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int passes where a float is asked
