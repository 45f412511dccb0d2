"""Hosts on one machine: network namespaces around a hub, each behind a link of limited rate.

No device, address or route of the machine itself changes: both ends of every link lie in namespaces of our own, whose
names hold this process's id. The addresses are of 198.18.0.0/15, which RFC 2544 keeps for measurements.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NETNS_FOLDER = Path("/run/netns")
DEVICE, BRIDGE = "link0", "bridge0"
SUBNET, PREFIX_BITS = "198.18.0", 24
# Small against a block of KV, or the tail of a move would pass for free; yet more than a late timer needs.
BURST_BYTES, QUEUE_MS = 32 * 1024, 50
COMMAND_TIMEOUT_S = 10.0
# From linux/sched.h and linux/mount.h; Python has `os.setns` and `os.unshare` from 3.12 only.
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_SLAVE, MNT_DETACH = 0x4000, 0x80000, 2


class NoNamespaces(Exception):
    """This machine or this user cannot have network namespaces, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs: a namespace by name (None: where it is anyway), its address, and the device that has it."""

    name: str | None
    address: str
    device: str


@contextlib.contextmanager
def star(hub: str, spokes: Sequence[str], *, mbit_per_s: int) -> Iterator[dict[str, Place]]:
    """A namespace per name, each spoke joined to the hub by a link that carries `mbit_per_s` in each direction.

    Raises:
        NoNamespaces: when they cannot be made.
    """
    full = {name: f"ferry-bench-{os.getpid()}-{name}" for name in (hub, *spokes)}
    made: list[str] = []
    try:
        for namespace in full.values():
            _run("ip", "netns", "add", namespace)
            made.append(namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        places = {hub: _bridge(full[hub])}
        for number, spoke in enumerate(spokes, start=2):
            places[spoke] = _join(full[hub], spoke, full[spoke], f"{SUBNET}.{number}", mbit_per_s)
        yield places
    finally:
        for namespace in made:
            _remove(namespace)


def _bridge(hub: str) -> Place:
    place = Place(name=hub, address=f"{SUBNET}.1", device=BRIDGE)
    _run("ip", "-n", hub, "link", "add", BRIDGE, "type", "bridge")
    _raise(place)
    return place


def _join(hub: str, spoke: str, namespace: str, address: str, mbit_per_s: int) -> Place:
    """One link: the hub's end is a port of the bridge, named after the spoke. Each end throttles what it sends."""
    place = Place(name=namespace, address=address, device=DEVICE)
    _run("ip", "-n", hub, "link", "add", spoke, "type", "veth", "peer", "name", DEVICE, "netns", namespace)
    _run("ip", "-n", hub, "link", "set", spoke, "master", BRIDGE, "up")
    _raise(place)
    for where, device in ((hub, spoke), (namespace, DEVICE)):
        limit = ("rate", f"{mbit_per_s}mbit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms")
        _run("tc", "-n", where, "qdisc", "add", "dev", device, "root", "tbf", *limit)
    return place


def _raise(place: Place) -> None:
    assert place.name is not None
    _run("ip", "-n", place.name, "address", "add", f"{place.address}/{PREFIX_BITS}", "dev", place.device)
    _run("ip", "-n", place.name, "link", "set", place.device, "up")


def _remove(namespace: str) -> None:
    """Its devices go with it. A failure is told and the others still go."""
    try:
        _run("ip", "netns", "delete", namespace)
    except NoNamespaces as error:
        print(f"left behind: {error}", file=sys.stderr)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNamespaces(f"{' '.join(command)}: {error}") from None
    if done.returncode != 0:
        raise NoNamespaces(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def enter(place: Place) -> None:
    """Put this process into a place, for good. Call it before any thread or socket is made: those stay where they are.

    Raises:
        OSError: when the kernel refuses.
    """
    if place.name is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with (NETNS_FOLDER / place.name).open() as namespace:
        _checked(libc.setns(namespace.fileno(), CLONE_NEWNET), "setns")
    # UCX finds devices in /sys, which shows those of the namespace that mounted it: as `ip netns exec`, mount it anew.
    _checked(libc.unshare(CLONE_NEWNS), "unshare")
    _checked(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "mount /")
    _checked(libc.umount2(b"/sys", MNT_DETACH), "umount /sys")
    _checked(libc.mount(b"sysfs", b"/sys", b"sysfs", ctypes.c_ulong(0), None), "mount /sys")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
