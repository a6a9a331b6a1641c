import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Small tensors run faster on one thread, and reruns have the same bits. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Child processes run the code of this tree too, whichever is installed.
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (HERE.parent / "src", HERE.parent / "kernels", HERE)))

# Whose code may be run is remembered here, not in the home of whoever runs the tests.
os.environ["ORDERSCOPE_STATE"] = tempfile.mkdtemp(prefix="orderscope-state-")
atexit.register(shutil.rmtree, os.environ["ORDERSCOPE_STATE"], ignore_errors=True)

from hypothesis import settings  # noqa: E402

from shape_checks import check_public_functions  # noqa: E402

# Types and shapes are checked while tests run. Not in the modules whose functions are compiled (numba_loops,
# triton_tiles, triton_projection).
KERNELS = ("numba_replay", "optimizers", "projection", "reference", "replay", "triton_replay")
check_public_functions(["orderscope.engine", *(f"orderscope_kernels.{name}" for name in KERNELS)])

# No deadline: a machine may be busy. The same examples every time: what CI says can be repeated.
settings.register_profile("orderscope", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("orderscope")
