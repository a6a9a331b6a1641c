"""What checks types and shapes of the engine's and the kernels' functions while tests run; see conftest.py."""

import random

from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

# beartype looks at one item of a list, drawn at random. It must not draw from Python's own generator, whose state runs
# record: it gets another one.
codemain.getrandbits = random.Random(0).getrandbits

# A whole number serves as a float, as in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
