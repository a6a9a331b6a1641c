"""What checks types and shapes of the engine's and the kernels' functions while tests run; see conftest.py."""

from beartype import BeartypeConf, beartype

# A whole number serves as a float, as in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
