"""Waits and step times of pools in closed form, over arrays of configurations. Pure numpy.

`costs` the two inputs · `lengths` of requests · `waits` textbook queues · `prefill` pools · `engine` that decodes
"""

from planner.queueing.costs import EngineRules, StepCosts
from planner.queueing.engine import EngineEstimate, decode_engine, departures_scv, mixed_engine
from planner.queueing.lengths import Lengths
from planner.queueing.prefill import PrefillEstimate, Routing, prefill_pool

__all__ = [
    "EngineEstimate",
    "EngineRules",
    "Lengths",
    "PrefillEstimate",
    "Routing",
    "StepCosts",
    "decode_engine",
    "departures_scv",
    "mixed_engine",
    "prefill_pool",
]
