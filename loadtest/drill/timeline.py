"""What a drill does to a deployment, and when. Pure.

On the command line one action is `20 drain decode-1`: seconds after the start, kind, subject. In a file:

    actions:
      - {at_s: 20, drain: decode-1}
      - {at_s: 40, run: "kubectl delete pod decode-1"}

Replicas are named as `ferry status` names them, or as `busiest:POOL`: the one that has most requests in that pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from loadtest.types import LoadTestError

BUSIEST, PID = "busiest:", "pid:"


class Kind(StrEnum):
    DRAIN = "drain"  # through the admin API: its contexts move away
    UNDRAIN = "undrain"
    KILL = "kill"  # SIGKILL: the engine core of a replica on this machine, or pid:N
    KILL_HOST = "kill-host"  # SIGKILL: all processes of a replica on this machine
    STOP = "stop"  # SIGSTOP: as kill
    CONTINUE = "continue"  # SIGCONT
    RUN = "run"  # a command for the shell


BY_ADMIN_API = frozenset({Kind.DRAIN, Kind.UNDRAIN})
BY_SIGNAL = frozenset({Kind.KILL, Kind.KILL_HOST, Kind.STOP, Kind.CONTINUE})


@dataclass(frozen=True, slots=True)
class Action:
    """`at_s` counts from the start of the load."""

    at_s: float
    kind: Kind
    subject: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.subject}"

    @property
    def pid(self) -> int | None:
        return int(self.subject.removeprefix(PID)) if self.subject.startswith(PID) else None

    @property
    def names_replica(self) -> bool:
        return self.kind is not Kind.RUN and self.pid is None


def parse_action(text: str) -> Action:
    """From `20 drain decode-1`. Raises LoadTestError."""
    parts = text.split(maxsplit=2)
    if len(parts) != 3:
        raise LoadTestError(f"--do {text!r} is not `SECONDS KIND SUBJECT`, such as `20 drain decode-1`")
    try:
        at_s = float(parts[0].removesuffix("s"))
    except ValueError as error:
        raise LoadTestError(f"--do {text!r}: {parts[0]!r} is no number of seconds") from error
    return _checked(at_s, parts[1], parts[2], f"--do {text!r}")


def timeline_from(data: Mapping[str, object], file: str) -> list[Action]:
    """From parsed YAML. Raises LoadTestError that names the entry."""
    entries = data.get("actions")
    unknown = sorted(set(data) - {"actions"})
    if unknown or not isinstance(entries, list):
        raise LoadTestError(
            f"{file}: {unknown[0]!r} is not a known key" if unknown else f"{file} has no list `actions`"
        )
    actions = []
    for number, entry in enumerate(entries):
        where = f"{file}: actions.{number}"
        if not isinstance(entry, dict):
            raise LoadTestError(f"{where} is no mapping such as {{at_s: 20, drain: decode-1}}")
        kinds = [key for key in entry if key != "at_s"]
        if len(kinds) != 1 or "at_s" not in entry:
            raise LoadTestError(f"{where} needs at_s and one of {', '.join(Kind)}")
        at_s = entry["at_s"]
        if isinstance(at_s, bool) or not isinstance(at_s, int | float):
            raise LoadTestError(f"{where}: at_s is {at_s!r} and no number of seconds")
        actions.append(_checked(float(at_s), str(kinds[0]), str(entry[kinds[0]]), where))
    return in_order(actions)


def in_order(actions: Iterable[Action]) -> list[Action]:
    """By their time; those of one time as they were given."""
    return sorted(actions, key=lambda action: action.at_s)


def _checked(at_s: float, kind: str, subject: str, where: str) -> Action:
    if not (at_s >= 0 and math.isfinite(at_s)):
        raise LoadTestError(f"{where}: {at_s:g} s is not a time after the start")
    if kind not in list(Kind):
        raise LoadTestError(f"{where}: {kind!r} is none of {', '.join(Kind)}")
    action = Action(at_s, Kind(kind), subject.strip())
    if not action.subject:
        raise LoadTestError(f"{where} does not say whom")
    if action.subject.startswith(PID):
        if action.kind not in BY_SIGNAL:
            raise LoadTestError(f"{where}: {kind} wants a replica and no process")
        # 0 and negative numbers mean groups of processes, 1 is the machine.
        number = action.subject.removeprefix(PID)
        if not number.isdecimal() or int(number) <= 1:
            raise LoadTestError(f"{where}: {number!r} is not the number of a process")
    return action
