"""What a drill does to a deployment, and when. Pure.

On the command line one action is `20 drain decode-1`: seconds after the start, kind, subject. In a file:

    actions:
      - {at_s: 20, drain: decode-1}
      - {at_s: 30, notice: "decode-2 25s"}
      - {at_s: 40, run: "kubectl scale deployment decode --replicas 3"}
      - {at_s: 60, slow: "80ms 10mbit"}

Replicas are named as `ferry status` names them, or as `busiest:POOL`: the one that has most requests in that pool.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from loadtest.drill.slowness import FREE, OFF, Slowness, parse_slowness
from loadtest.http.address import parse_base_url
from loadtest.types import LoadTestError

BUSIEST, PID = "busiest:", "pid:"
URL = re.compile(r"[!-~]+")


class Kind(StrEnum):
    DRAIN = "drain"  # through the admin API: its contexts move away
    UNDRAIN = "undrain"
    KILL = "kill"  # SIGKILL: the engine core of a replica on this machine, or pid:N
    KILL_HOST = "kill-host"  # SIGKILL: all processes of a replica on this machine
    TAKE = "take"  # as kill-host, but that the replica has left already is as good
    NOTICE = "notice"  # `REPLICA 30s`: drained through the admin API with that deadline, and taken when it is over
    STOP = "stop"  # SIGSTOP: as kill
    CONTINUE = "continue"  # SIGCONT
    SLOW = "slow"  # the network between the load and the server: `80ms`, `10mbit`, both, or `off`
    POST = "post"  # to a URL: a hook that gives notice, say
    RUN = "run"  # a command for the shell


BY_ADMIN_API = frozenset({Kind.DRAIN, Kind.UNDRAIN, Kind.NOTICE})
BY_SIGNAL = frozenset({Kind.KILL, Kind.KILL_HOST, Kind.TAKE, Kind.STOP, Kind.CONTINUE})
OF_NO_REPLICA = frozenset({Kind.SLOW, Kind.POST, Kind.RUN})


@dataclass(frozen=True, slots=True)
class Action:
    """`at_s` counts from the start of the load."""

    at_s: float
    kind: Kind
    subject: str
    lead_s: float = 0.0
    """Of a notice: so long after it the replica is taken."""
    slowness: Slowness = FREE
    """Of the network from now on."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.subject}{f' {self.lead_s:g}s' if self.kind is Kind.NOTICE else ''}"

    @property
    def pid(self) -> int | None:
        return int(self.subject.removeprefix(PID)) if self.subject.startswith(PID) else None

    @property
    def names_replica(self) -> bool:
        return self.kind not in OF_NO_REPLICA and self.pid is None

    def taking(self, replica: str, noticed_s: float) -> Action:
        """What follows the notice that `replica` got at that time."""
        return Action(noticed_s + self.lead_s, Kind.TAKE, replica)


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
        subject = entry[kinds[0]]
        # YAML takes a bare `off` for false.
        actions.append(_checked(float(at_s), str(kinds[0]), OFF if subject is False else str(subject), where))
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
    match action.kind:
        case Kind.NOTICE:
            return _notice(action, where)
        case Kind.SLOW:
            return replace(action, slowness=parse_slowness(action.subject, where))
        case Kind.POST if not action.subject.startswith(("http://", "https://")):
            raise LoadTestError(f"{where}: {action.subject!r} is not an http or https URL")
        case Kind.POST if not URL.fullmatch(action.subject):
            raise LoadTestError(f"{where}: {action.subject!r} is not as URLs go over the wire: percent-encode it")
        case Kind.POST:
            parse_base_url(action.subject)
    return action


def _notice(action: Action, where: str) -> Action:
    replica, _, lead = action.subject.rpartition(" ")
    try:
        lead_s = float(lead.removesuffix("s"))
    except ValueError:
        lead_s = math.nan
    if not replica or not (lead_s >= 0 and math.isfinite(lead_s)):
        raise LoadTestError(f"{where}: {action.subject!r} is not `REPLICA LEAD`, such as `decode-1 30s`")
    return replace(action, subject=replica.strip(), lead_s=lead_s)
