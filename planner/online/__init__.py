"""Changing a plan while it runs: how many replicas, from what was observed. Pure.

`observed` what comes in · `replan` what comes out · `capacity` what a replica bears now
"""

from planner.online.observed import Attained, Observed, PoolObserved, ReplanLimits
from planner.online.replan import PoolReplan, Replan, replan

__all__ = ["Attained", "Observed", "PoolObserved", "PoolReplan", "Replan", "ReplanLimits", "replan"]
