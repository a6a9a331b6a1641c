"""A numpy file that somebody named: an array of plain numbers, or an error that says what the file is instead."""

from __future__ import annotations

import os
import warnings
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from orderscope.errors import OrderscopeError
from orderscope.files import open_given, trouble


def load_array(path: str, what: str) -> np.ndarray:
    """The array in a .npy file. Nothing in the file is run, and no more is read than it holds.

    Args:
        path: of the file.
        what: what it should be, for the error.

    Raises:
        OrderscopeError: no file, or not a sound one.
    """
    expected = f"{what} saved with numpy.save"
    try:
        with open_given(Path(path).expanduser()) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's about headers of old files
            major, _ = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if dtype.kind not in "biuf" or min(shape, default=0) < 0:
                raise ValueError(f"an array of {dtype}, shape {shape}")
            held = os.fstat(file.fileno()).st_size - file.tell()
            if prod(shape) * dtype.itemsize != held:
                raise ValueError(f"{held} bytes for shape {shape} of {dtype}")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    except OrderscopeError:
        raise
    except FileNotFoundError:
        raise OrderscopeError(f"no file {path}", expected, "correct the path") from None
    except OSError as error:
        raise trouble(error, path) from None
    except Exception as error:  # numpy's reader parses Python, and raises whatever that raises
        detail = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise OrderscopeError(f"file {path} that is not a numpy array ({detail})", expected, "save it again") from None
