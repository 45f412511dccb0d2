"""Discrete-event simulation of pools with vLLM v1's scheduling rules. Pure and deterministic by seed.

`requests` drawn · `fleet` what stands · `run` open or closed loop · `outcome` percentiles and their error · `verify`
goals. Inside: `engine` (the scheduler), `station` (one pool), `ledger` (what engines write).
"""

from planner.simulate.fleet import Fleet, MixedFleet, Pool, SplitFleet, Spread
from planner.simulate.outcome import EngineTotals, Interval, Outcome
from planner.simulate.requests import Requests, draw_arrivals, draw_requests
from planner.simulate.run import run_closed, run_open
from planner.simulate.verify import Verdict, judge, verify

__all__ = [
    "EngineTotals",
    "Fleet",
    "Interval",
    "MixedFleet",
    "Outcome",
    "Pool",
    "Requests",
    "SplitFleet",
    "Spread",
    "Verdict",
    "draw_arrivals",
    "draw_requests",
    "judge",
    "run_closed",
    "run_open",
    "verify",
]
