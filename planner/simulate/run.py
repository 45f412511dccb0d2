"""Runs a fleet under open-loop arrivals or a closed loop of users, and checks beforehand that every request can fit."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from planner.queueing.costs import Floats
from planner.simulate.engine import FOREVER
from planner.simulate.fleet import Fleet, MixedFleet, Pool, SplitFleet
from planner.simulate.ledger import Ledger
from planner.simulate.outcome import EngineTotals, Outcome
from planner.simulate.requests import Ints, Requests
from planner.simulate.station import Station
from planner.types import PlannerError

Event = tuple[float, int, int]
"""(time, station, request)"""
NEXT = -1
"""In an event: whichever request is the next to be sent."""


def run_open(fleet: Fleet, requests: Requests, *, seed: int = 0) -> Outcome:
    """The requests arrive at their `arrival_s`, whatever becomes of them.

    Nothing flows back, so each pool is run to its end before the next one starts.
    """
    if not len(requests.arrival_s):
        raise PlannerError("requests", "arrival_s", None, "an open loop needs arrival times", "draw arrivals")
    ledger, stations, overhead_s = _start(fleet, requests, seed)
    sent_s = requests.arrival_s
    ledger.arrival_s = (sent_s + overhead_s).tolist()
    first = stations[0]
    for request, at_s in enumerate(ledger.arrival_s):
        first.give(request, at_s)
    first.advance(FOREVER)
    if isinstance(fleet, SplitFleet):
        arrivals = [event for request in first.take_finished() if (event := _transfer(fleet, ledger, request))]
        for at_s, _, request in sorted(arrivals):
            stations[1].give(request, at_s)
        stations[1].advance(FOREVER)
    return _outcome(requests, ledger, stations, sent_s)


def run_closed(fleet: Fleet, requests: Requests, *, concurrency: int, seed: int = 0) -> Outcome:
    """`concurrency` users start at once; each sends the next request when its answer is complete.

    The start is a burst of prompts, as in most load generators.
    """
    if concurrency < 1:
        raise PlannerError("load", "concurrency", concurrency, "must be at least 1", "give a number of users")
    ledger, stations, overhead_s = _start(fleet, requests, seed)
    sent: list[float] = []
    pending: list[Event] = [(overhead_s, 0, NEXT)] * min(concurrency, len(requests))
    while True:
        events = [station.next_event for station in stations]
        first_s, _ = min(events)
        if pending and pending[0][0] <= first_s:
            at_s, place, request = heappop(pending)
            if request == NEXT:
                if len(sent) == len(requests):
                    continue
                request = len(sent)
                ledger.arrival_s[request] = at_s
                sent.append(at_s - overhead_s)
            stations[place].give(request, at_s)
        elif first_s < FOREVER:
            place = events.index(min(events))
            stations[place].step_first()
        else:
            return _outcome(requests, ledger, stations, np.asarray(sent))
        for request in stations[place].take_finished():
            event = _transfer(fleet, ledger, request) if place == 0 and isinstance(fleet, SplitFleet) else None
            heappush(pending, event or (ledger.finish_s[request] + overhead_s, 0, NEXT))


def _start(fleet: Fleet, requests: Requests, seed: int) -> tuple[Ledger, list[Station], float]:
    ledger = Ledger(requests)
    prompt, output = requests.prompt_tokens, requests.output_tokens
    if isinstance(fleet, MixedFleet):
        _check_fit(fleet.pool, prompt + output)
        return ledger, [Station(fleet.pool, ledger, seed=seed)], float(fleet.pool.costs.overhead_s)
    _check_fit(fleet.prefill, prompt)
    _check_fit(fleet.decode, prompt + output)
    stations = [
        Station(fleet.prefill, ledger, seed=seed, prefill_only=True),
        Station(fleet.decode, ledger, seed=seed + 1),
    ]
    return ledger, stations, float(fleet.prefill.costs.overhead_s)


def _check_fit(pool: Pool, tokens: Ints) -> None:
    """Raises PlannerError for a request that no empty engine of the pool could hold."""
    rules = pool.rules
    longest = int(tokens.max()) + rules.lag_steps
    if longest > int(rules.kv_blocks) * int(rules.block_size_tokens):
        raise PlannerError(
            "simulation",
            "kv_blocks",
            rules.kv_blocks,
            f"cannot hold the longest request, {longest} tokens",
            "give the engine more KV cache or drop such requests",
        )


def _transfer(fleet: SplitFleet, ledger: Ledger, request: int) -> Event | None:
    """The arrival at the decode pool; None for a request of one token, which is complete."""
    if not ledger.left_tokens[request]:
        return None
    tokens = ledger.goal_tokens[request]
    at_s = ledger.finish_s[request] + fleet.transfer_s + fleet.transfer_token_s * tokens
    ledger.bring_kv(request, at_s)
    if fleet.late_first_token:
        ledger.first_token_s[request] = at_s
    return at_s, 1, request


def _outcome(requests: Requests, ledger: Ledger, stations: list[Station], sent_s: Floats) -> Outcome:
    first_s, finish_s = np.asarray(ledger.first_token_s), np.asarray(ledger.finish_s)
    assert first_s.min() >= 0 and np.all(finish_s >= first_s), "a request was lost"
    totals = tuple(
        EngineTotals(
            busy_s=engine.busy_s,
            sequence_seconds=engine.sequence_seconds,
            preemptions=engine.preemptions,
            peak_kv_blocks=engine.total_blocks - engine.least_free_blocks,
            left_kv_blocks=engine.total_blocks - engine.free_blocks,
        )
        for station in stations
        for engine in station.engines
    )
    return Outcome(
        sent_s=sent_s,
        first_token_s=first_s,
        finish_s=finish_s,
        output_tokens=requests.output_tokens,
        engines=totals,
    )
