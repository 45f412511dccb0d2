"""The laws of the house that no linter holds: sizes, fakes instead of mocks, nothing that names one machine.

Which module may import which is import-linter's part (see pyproject.toml).
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("serving", "planner", "loadtest", "tests")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

# Text that is written by hand or made by `make lock`. Data files may quote whatever they measured.
TEXT_SUFFIXES = {".cfg", ".lock", ".md", ".py", ".sh", ".toml", ".yaml", ".yml", ""}
INDEX_HOST = re.compile(r"pypi\.(?:org|python\.org|nvidia\.com)|pythonhosted\.org|download\.pytorch\.org")
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:home|Users)/[a-z]\w*/|/opt/[a-z-]*(?:wheels|pypi)")
IMAGE_PATH = re.compile(r"(?<![\w.~}-])/root/")  # a container image has a /root of its own

MOCK = re.compile(r"^\s*(?:from unittest(?:\.mock)? import .*mock|import unittest\.mock)", re.IGNORECASE | re.MULTILINE)
GENERATED = {"build", "dist", "results", "__pycache__"}

LOCKS = {"cpu": ROOT / "requirements-cpu.lock", "gpu": ROOT / "requirements-gpu.lock"}
# Each lock keeps one CUDA major of NIXL, and CPU torch does not bear the CUDA builds of its companions.
LEFT_OUT = {"cpu": {"nixl-cu13", "torchaudio", "torchcodec", "torchvision"}, "gpu": {"nixl-cu12"}}


def python_files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def text_files() -> Iterator[Path]:
    """Every text file a clone would hold, found without git: a source archive has none."""
    shown = [path for path in sorted(ROOT.iterdir()) if not path.name.startswith(".") or path.name == ".ci"]
    for path in (found for top in shown for found in [top, *sorted(top.rglob("*"))]):
        folders = path.relative_to(ROOT).parts[:-1]
        generated = any(folder in GENERATED or folder.endswith(".egg-info") for folder in folders)
        text = path.suffix in TEXT_SUFFIXES and path.name != Path(__file__).name
        if text and not generated and path.is_file():
            yield path


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def pins(lock: Path) -> dict[str, Requirement]:
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in python_files()}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in python_files()
        for node in functions(path)
        if (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_tests_use_fakes_and_not_mocks() -> None:
    mocking = [str(path.relative_to(ROOT)) for path in python_files() if MOCK.search(path.read_text("utf-8"))]
    assert mocking == []


def test_no_text_names_an_index_host_or_a_path_of_one_machine() -> None:
    named = []
    for path in text_files():
        laws = [INDEX_HOST, MACHINE_PATH]
        if not path.is_relative_to(ROOT / "docker"):
            laws.append(IMAGE_PATH)
        text = path.read_text(encoding="utf-8", errors="replace")
        named += [f"{path.relative_to(ROOT)}: {match[0]}" for law in laws for match in law.finditer(text)]
    assert named == []


@pytest.mark.parametrize("extra", sorted(LOCKS))
def test_a_lock_pins_every_dependency_exactly(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in (extra, "dev"))]
    pinned = pins(LOCKS[extra])
    for requirement in pinned.values():
        assert requirement.url is None and re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
    for requirement in (Requirement(line) for group in groups for line in group):
        version = str(pinned[requirement.name.lower()].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert not LEFT_OUT[extra] & pinned.keys()


def test_the_cpu_lock_cannot_take_a_cuda_build_of_torch() -> None:
    assert str(pins(LOCKS["cpu"])["torch"].specifier).endswith("+cpu")
    assert not [name for name in pins(LOCKS["cpu"]) if name.startswith(("nvidia-cu", "cuda-"))]
