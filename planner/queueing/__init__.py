"""Waits and step times of pools in closed form, over arrays of configurations. Pure numpy.

`costs` the two inputs · `lengths` of requests · `waits` textbook queues · `prefill` pools · `engine` that decodes
`capacity` highest rate under goals · `closed_loop` of users
"""

from planner.queueing.capacity import Estimate, max_rate_rps, meets
from planner.queueing.closed_loop import ClosedLoop, closed_loop
from planner.queueing.costs import EngineRules, StepCosts
from planner.queueing.engine import EngineEstimate, decode_engine, mixed_engine
from planner.queueing.goals import Goal, Metric
from planner.queueing.lengths import Lengths
from planner.queueing.prefill import PrefillEstimate, Routing, prefill_pool

__all__ = [
    "ClosedLoop",
    "EngineEstimate",
    "EngineRules",
    "Estimate",
    "Goal",
    "Lengths",
    "Metric",
    "PrefillEstimate",
    "Routing",
    "StepCosts",
    "closed_loop",
    "decode_engine",
    "max_rate_rps",
    "meets",
    "mixed_engine",
    "prefill_pool",
]
