"""Every error that Ferry raises on purpose: a message (what happened) and a remedy (what to do).

    FerryError                   exit code 2
    ├── ConfigError              a setting, flag or file has a bad value; `field` names it
    ├── ModelError
    │   ├── ModelNotFound        no built-in, folder or hub repository has this name
    │   ├── ModelInvalid         the files are there, but they are not a servable model
    │   └── ModelUnavailable     the model exists, but cannot be fetched now (offline, gated, disk full)
    ├── MemoryUnfit              the engines asked for do not fit into this host
    ├── PortInUse                another process listens on the port
    ├── RayUnavailable           no Ray cluster can be started or reached
    └── EngineError
        ├── EngineStartFailed    an engine did not become ready
        └── EngineLost           a running engine went away

The gateway's `error_envelope` holds the one table from these classes to HTTP. Arguments are positional in
`args`, so that errors survive pickling between Ray processes.
"""

from __future__ import annotations

from typing import ClassVar


class FerryError(Exception):
    """The root. `message` is one sentence without a full stop; `remedy` is an instruction to a person."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message


class ConfigError(FerryError):
    """A setting, flag or file has a bad value. `field` is its dotted name, as the user wrote it."""

    def __init__(self, message: str, remedy: str, field: str = "") -> None:
        super().__init__(message, remedy)
        self.args = (message, remedy, field)
        self.field = field


class ModelError(FerryError):
    """A model cannot be served."""


class ModelNotFound(ModelError):
    """No built-in model, folder or hub repository has this name."""


class ModelInvalid(ModelError):
    """The files are there, but they are not a servable model."""


class ModelUnavailable(ModelError):
    """The model exists, but cannot be fetched now: offline, gated, or no room on the disk."""


class MemoryUnfit(FerryError):
    """The engines asked for do not fit into this host."""


class PortInUse(FerryError):
    """Another process listens on the port."""


class RayUnavailable(FerryError):
    """No Ray cluster can be started or reached."""


class EngineError(FerryError):
    """An engine does not do its work."""


class EngineStartFailed(EngineError):
    """An engine did not become ready."""


class EngineLost(EngineError):
    """A running engine went away."""

    def __init__(self, message: str, remedy: str = "see `ferry status`; Ray replaces the replica") -> None:
        super().__init__(message, remedy)


def describe(error: FerryError) -> str:
    """The two lines a terminal shows: the error and its remedy."""
    return f"error: {error.message}\n  remedy: {error.remedy}"
