"""The GPUs of this machine, through NVIDIA's management library. A machine without one has none, which is no error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from loadtest.watch.types import GpuSample

with warnings.catch_warnings():
    # One of the two packages that bring this module says that the other should: nothing that a user of ours can do.
    warnings.simplefilter("ignore", FutureWarning)
    import pynvml

T = TypeVar("T")


class Gpus:
    """Opened once; `sample` reads every GPU. Reading takes some 100 µs each and does not disturb what runs there."""

    def __init__(self) -> None:
        """Raises pynvml.NVMLError where there is no driver."""
        pynvml.nvmlInit()
        self._handles: list[Any] = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        self._names = [_text(pynvml.nvmlDeviceGetName(handle)) for handle in self._handles]

    def sample(self, at_ns: int) -> list[GpuSample]:
        return [
            GpuSample(
                at_ns=at_ns,
                index=index,
                name=self._names[index],
                busy_share=_told(lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100, handle),
                memory_bytes=_told(lambda gpu: int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used), handle),
                power_w=_told(lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3, handle),
            )
            for index, handle in enumerate(self._handles)
        ]

    def close(self) -> None:
        pynvml.nvmlShutdown()


def gpus_here() -> Gpus | None:
    """None on a machine without NVIDIA's driver."""
    try:
        return Gpus()
    except pynvml.NVMLError:
        return None


def _told(read: Callable[[Any], T], handle: Any) -> T | None:
    """Not every device tells everything: a MIG slice has no power of its own."""
    try:
        return read(handle)
    except pynvml.NVMLError:
        return None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
