"""What was seen of the server during a run. Pure. Instants are monotonic nanoseconds, as in the client's records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Counters = Mapping[str, Mapping[str, float]]
"""By what is counted, then by who counts it: the labels of that series."""


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One engine at one instant. `kv_share`: of its KV blocks, the share in use; None where it does not tell."""

    engine: str
    pool: str
    running: float
    waiting: float
    kv_share: float | None


@dataclass(frozen=True, slots=True)
class ServerSample:
    """One scrape. `at_ns` is the middle between asking and having the answer."""

    at_ns: int
    took_ns: int
    engines: tuple[EngineSample, ...]
    counters: Counters

    @property
    def running(self) -> float:
        return sum(engine.running for engine in self.engines)

    @property
    def waiting(self) -> float:
        return sum(engine.waiting for engine in self.engines)


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU of this machine. Shares of 1; a figure that the driver does not give is None."""

    at_ns: int
    index: int
    name: str
    busy_share: float | None
    memory_bytes: int | None
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Watched:
    """Everything that was seen, in its order. `errors`: each kind of failure once, with how often it came."""

    server: tuple[ServerSample, ...] = ()
    gpus: tuple[GpuSample, ...] = ()
    errors: Mapping[str, int] | None = None

    def since(self, start_ns: int) -> Watched:
        """The same with instants that count from `start_ns` on."""
        return replace(
            self,
            server=tuple(replace(sample, at_ns=sample.at_ns - start_ns) for sample in self.server),
            gpus=tuple(replace(sample, at_ns=sample.at_ns - start_ns) for sample in self.gpus),
        )
