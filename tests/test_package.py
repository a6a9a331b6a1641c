import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import orderscope as osc


def test_importing_the_package_does_not_import_torch():
    code = "import orderscope, sys; orderscope.OrderscopeError; print({'torch', 'numpy', 'h5py'} & set(sys.modules))"
    env = {"PYTHONPATH": str(Path(osc.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_no_module_hides_a_public_function():
    for name in osc.__all__:
        getattr(osc, name)
    modules = {module.name for module in pkgutil.iter_modules(osc.__path__)}
    assert modules & set(osc.__all__) == {"record"}
    former = importlib.import_module("orderscope.record")
    assert former.load_run is importlib.import_module("orderscope.training").load_run
    assert callable(osc.record)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        osc.nothing  # noqa: B018
    assert "Task" in dir(osc)


def test_errors_are_one_line_of_three_parts():
    error = osc.OrderscopeError("a", "b", "c")
    assert str(error) == "found a; expected b; c"
    assert (osc.OrderscopeError.exit_code, osc.DamagedRun.exit_code, osc.IncompleteRun.exit_code) == (1, 4, 5)
