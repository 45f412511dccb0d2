"""Measures a running deployment at a few chosen loads, and writes what the planner calibrates on.

`design` which loads · `facts` what the endpoint says about itself · `measure` runs them · `options` what the flags say
"""

from loadtest.profile.design import Reach, Trial, choose_trials
from loadtest.profile.facts import Facts, facts_of
from loadtest.profile.measure import Measured, Measurements, measure

__all__ = ["Facts", "Measured", "Measurements", "Reach", "Trial", "choose_trials", "facts_of", "measure"]
