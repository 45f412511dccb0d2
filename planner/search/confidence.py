"""How sure a plan is: the share of plausible step times under which it still holds the promise.

The performance model's errors are taken as lognormal factors, one on decode steps and one on prompts and front end.
Each point of a grid over both is a slower or faster engine, whose highest rate the closed forms tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from planner.perf.calibration import Sigma
from planner.queueing import StepCosts
from planner.queueing.costs import Floats
from planner.search.designs import rows_of_costs
from planner.search.fleets import Fleet, Pool
from planner.search.promises import (
    EstimateAt,
    decode_at,
    highest_rate_rps,
    mixed_at,
    of_decode,
    of_prefill,
    prefill_at,
    promises_of,
)
from planner.search.traffic import Traffic

# Equally likely errors: the middles of so many slices of a normal law, for decode steps and for prompts.
DECODE_POINTS, PROMPT_POINTS = 15, 7
ROUNDING = 1e-9
PARTS = {"prefill": of_prefill, "decode": of_decode}

Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Doubt:
    """The highest rate of one replica of each pool of a fleet at every point of the grid, all points equally likely.

    `trust` corrects the closed forms by what simulation found: replicas they asked for over replicas needed.
    """

    rates_rps: tuple[Floats, ...]
    rate_rps: float
    trust: tuple[float, ...]

    def probability(self, replicas: tuple[int, ...]) -> float:
        """P(SLO met) with so many replicas in each pool."""
        held = np.ones(self.rates_rps[0].shape, dtype=bool)
        for rates, count, trust in zip(self.rates_rps, replicas, self.trust, strict=True):
            held &= rates * trust * count >= self.rate_rps * (1 - ROUNDING)
        return float(held.mean())

    def replicas_for(self, probability: float, least: tuple[int, ...]) -> tuple[int, ...] | None:
        """The fewest replicas, each pool enlarged alike, that are so sure; None if no number is."""
        able = np.ones(self.rates_rps[0].shape, dtype=bool)
        for rates in self.rates_rps:
            able &= rates > 0
        if able.mean() < probability:
            return None
        needed = [
            np.where(able, np.ceil(self.rate_rps / np.where(able, rates * trust, 1.0) - ROUNDING), np.inf)
            for rates, trust in zip(self.rates_rps, self.trust, strict=True)
        ]
        # The points that are cheapest to cover, measured by the pool that must grow most.
        growth = np.maximum.reduce([need / max(1, count) for need, count in zip(needed, least, strict=True)])
        covered = np.argsort(growth.ravel(), kind="stable")[: int(np.ceil(growth.size * probability - ROUNDING))]
        return tuple(max(count, int(need.ravel()[covered].max())) for need, count in zip(needed, least, strict=True))


def doubt(fleet: Fleet, traffic: Traffic, sigma: Sigma, trust: tuple[float, ...]) -> Doubt:
    """The grid for a fleet."""
    decode, prompt = _errors(sigma)
    rates = tuple(_rates(pool, traffic, decode, prompt) for pool in fleet.pools)
    return Doubt(rates_rps=rates, rate_rps=traffic.busy_rate_rps, trust=trust)


def _errors(sigma: Sigma) -> tuple[Floats, Floats]:
    decode = np.exp(sigma.tpot * scipy.special.ndtri((np.arange(DECODE_POINTS) + 0.5) / DECODE_POINTS))
    prompt = np.exp(sigma.ttft * scipy.special.ndtri((np.arange(PROMPT_POINTS) + 0.5) / PROMPT_POINTS))
    grid = np.meshgrid(decode, prompt, indexing="ij")
    return grid[0].ravel(), grid[1].ravel()


def _rates(pool: Pool, traffic: Traffic, decode: Floats, prompt: Floats) -> npt.NDArray[np.float64]:
    designs, row = pool.designs, pool.row
    costs, rules = designs.costs.row(row), designs.rules(row)
    slower = StepCosts(
        step_s=costs.step_s * (prompt if designs.role == "prefill" else decode),
        sequence_s=costs.sequence_s * decode,
        kv_token_s=costs.kv_token_s * decode,
        prefill_token_s=costs.prefill_token_s * prompt,
        prefill_square_s=costs.prefill_square_s * prompt,
        overhead_s=costs.overhead_s * prompt,
    )
    scv = 1 + (traffic.arrival_scv - 1) / pool.replicas
    transfer_s = float(designs.transfer_s[row] + designs.transfer_token_s[row] * traffic.lengths.prompt_tokens.mean())

    def at(chosen: Index) -> EstimateAt:
        lines = rows_of_costs(slower, chosen)
        if designs.role == "mixed":
            return mixed_at(lines, rules, traffic, scv)
        if designs.role == "prefill":
            return prefill_at(lines, rules, traffic, scv)
        return decode_at(lines, rules, traffic, scv, transfer_s)

    # Every point is a group of its own: all rates are wanted.
    promises = promises_of(traffic, PARTS.get(designs.role))
    return highest_rate_rps(at, promises, np.arange(len(decode))) * float(designs.ranks[row])
