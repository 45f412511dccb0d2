"""From a promise and its traffic to plans. Pure numpy.

`question` and `answers` are its two ends · `plan_for` the way between
"""

from planner.search.answers import Answer, Candidate, Change, Infeasible, Nearest, NearestSlo, Point, Skipped
from planner.search.plan_for import plan_for
from planner.search.question import PlanQuestion, Space, SpotTerms

__all__ = [
    "Answer",
    "Candidate",
    "Change",
    "Infeasible",
    "Nearest",
    "NearestSlo",
    "PlanQuestion",
    "Point",
    "Skipped",
    "Space",
    "SpotTerms",
    "plan_for",
]
