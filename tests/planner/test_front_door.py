"""The planner's front door: every name that it shows is there, and none is paid for before it is asked for."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import planner

LOADED = "import sys, {module}; print(sorted(name for name in sys.modules if name.startswith('{prefix}')))"


@pytest.mark.parametrize("name", planner.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(planner, name) is not None


def test_no_name_is_hidden_by_a_module() -> None:
    """`planner.x` is the module once anything has imported it, whatever the stub says."""
    modules = {module.name for module in pkgutil.iter_modules(planner.__path__)}
    assert not modules & set(planner.__all__)


def test_the_front_door_alone_loads_no_part_of_the_planner() -> None:
    assert loaded("planner", "planner.") == "[]"


@pytest.mark.parametrize("heavy", ["scipy.special", "scipy.optimize", "planner.search.plan_for", "planner.cli"])
def test_a_load_test_starts_without_the_search_and_its_libraries(heavy: str) -> None:
    assert loaded("loadtest.cli", heavy) == "[]"
    assert importlib.util.find_spec(heavy) is not None


def loaded(module: str, prefix: str) -> str:
    code = LOADED.format(module=module, prefix=prefix)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
