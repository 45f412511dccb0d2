"""Engines with their batch limits: what each costs per step, what it holds, and the rate that one replica bears."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.plan import Role
from planner.queueing import EngineRules, StepCosts
from planner.queueing.costs import Floats
from planner.search.memory import Fit
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
from planner.search.question import Space
from planner.search.steps import Machines, decode_costs, mixed_costs, prefill_costs
from planner.search.traffic import Traffic

Index = npt.NDArray[np.intp]

BLOCK_TOKENS = 16
# Prefill engines hold prompts for a few steps only.
PREFILL_SEQS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Designs:
    """One element per engine design of a role. `rate_rps` is of one replica, all its data-parallel ranks together."""

    role: Role
    pair: Index
    budget: Floats
    seqs: Floats
    blocks: npt.NDArray[np.int64]
    kv_tokens: Floats
    ranks: Floats
    costs: StepCosts
    transfer_s: Floats
    transfer_token_s: Floats
    kv_token_bytes: Floats  # of one context token, on all devices of a replica
    rate_rps: Floats

    def __len__(self) -> int:
        return len(self.pair)

    def rules(self, rows: int | Index) -> EngineRules:
        """vLLM's limits of one design, as numbers, or of several, as arrays."""
        several = EngineRules(
            max_num_batched_tokens=np.atleast_1d(self.budget[rows]),
            max_num_seqs=np.atleast_1d(self.seqs[rows]),
            kv_blocks=np.maximum(1.0, np.floor(np.atleast_1d(self.kv_tokens[rows]) / BLOCK_TOKENS)),
            block_size_tokens=BLOCK_TOKENS,
        )
        return several.row(0) if isinstance(rows, int) else several

    def best_of_pairs(self) -> Index:
        """The row of each pair with the highest rate; of equal ones the smallest limits. Pairs of rate 0 are left out.

        All replicas of a pair cost the same, so no other row can win.
        """
        order = np.lexsort((self.seqs, self.budget, -self.rate_rps, self.pair))
        first = np.unique(self.pair[order], return_index=True)[1]
        rows = order[first]
        return np.asarray(rows[self.rate_rps[rows] > 0])


def mixed_designs(machines: Machines, fit: Fit, space: Space, traffic: Traffic) -> Designs:
    """Every pair, budget and max_num_seqs that fits into memory, as an engine that prefills and decodes."""
    pair, budget_at, seqs_at = np.nonzero(fit.fits)
    budgets, seqs = _values(space, budget_at, seqs_at)
    decode = _decode_rows(machines, space, pair, seqs_at, traffic)
    rows = machines.take(pair)
    costs = mixed_costs(rows, decode, seqs, budgets, traffic.lengths)
    found = _designs("mixed", rows, fit, (pair, budget_at, seqs_at), budgets, seqs, costs)
    scv = _thinned(found, traffic)

    def at(chosen: Index) -> EstimateAt:
        return mixed_at(rows_of_costs(costs, chosen), found.rules(chosen), traffic, scv[chosen])

    return _rated(found, highest_rate_rps(at, promises_of(traffic), pair))


def decode_designs(machines: Machines, fit: Fit, space: Space, traffic: Traffic) -> Designs:
    """As engines of a decode pool, each under the smallest budget that holds a token of every sequence."""
    some = fit.fits.any(axis=1) & (machines.work.pp == 1)[:, None]
    pair, seqs_at = np.nonzero(some)
    budget_at = np.argmax(fit.fits[pair, :, seqs_at], axis=1)
    budgets, seqs = _values(space, budget_at, seqs_at)
    costs = _decode_rows(machines, space, pair, seqs_at, traffic)
    found = _designs("decode", machines.take(pair), fit, (pair, budget_at, seqs_at), budgets, seqs, costs)
    prompt = float(traffic.lengths.prompt_tokens.mean())
    transfer_s = found.transfer_s + found.transfer_token_s * prompt
    scv = _thinned(found, traffic)

    def at(chosen: Index) -> EstimateAt:
        lines, rules = rows_of_costs(costs, chosen), found.rules(chosen)
        return decode_at(lines, rules, traffic, scv[chosen], transfer_s[chosen])

    return _rated(found, highest_rate_rps(at, promises_of(traffic, of_decode), pair))


def prefill_designs(machines: Machines, fit: Fit, space: Space, traffic: Traffic) -> Designs:
    """As engines of a prefill pool."""
    place = int(np.argmin(np.abs(np.array(space.max_num_seqs) - PREFILL_SEQS)))
    pair, budget_at = np.nonzero(fit.fits[:, :, place] & (machines.work.pp == 1)[:, None])
    seqs_at = np.full(len(pair), place)
    budgets, seqs = _values(space, budget_at, seqs_at)
    rows = machines.take(pair)
    costs = prefill_costs(rows, budgets, traffic.lengths)
    found = _designs("prefill", rows, fit, (pair, budget_at, seqs_at), budgets, seqs, costs)
    scv = _thinned(found, traffic)

    def at(chosen: Index) -> EstimateAt:
        return prefill_at(rows_of_costs(costs, chosen), found.rules(chosen), traffic, scv[chosen])

    return _rated(found, highest_rate_rps(at, promises_of(traffic, of_prefill), pair))


def _decode_rows(machines: Machines, space: Space, pair: Index, seqs_at: Index, traffic: Traffic) -> StepCosts:
    """Lines depend on pair and max_num_seqs alone, so each is drawn once for all budgets."""
    count = len(space.max_num_seqs)
    used, back = np.unique(pair * count + seqs_at, return_inverse=True)
    seqs = np.array(space.max_num_seqs, float)[used % count]
    return rows_of_costs(decode_costs(machines.take(used // count), seqs, traffic.lengths), back)


def rows_of_costs(costs: StepCosts, rows: Index) -> StepCosts:
    """The chosen rows; numbers stay numbers."""
    found = {field.name: getattr(costs, field.name) for field in fields(costs)}
    return StepCosts(**{name: value[rows] if np.ndim(value) else value for name, value in found.items()})


def _values(space: Space, budget_at: Index, seqs_at: Index) -> tuple[Floats, Floats]:
    return np.array(space.budgets_tokens, float)[budget_at], np.array(space.max_num_seqs, float)[seqs_at]


def _designs(
    role: Role,
    rows: Machines,
    fit: Fit,
    at: tuple[Index, Index, Index],
    budgets: Floats,
    seqs: Floats,
    costs: StepCosts,
) -> Designs:
    transfer_s, transfer_token_s = rows.transfer_s()
    return Designs(
        role=role,
        pair=at[0],
        budget=budgets,
        seqs=seqs,
        blocks=fit.blocks[at],
        kv_tokens=fit.kv_tokens[at],
        ranks=rows.work.dp,
        costs=costs,
        transfer_s=transfer_s,
        transfer_token_s=transfer_token_s,
        kv_token_bytes=rows.work.kv_bytes_held * rows.work.tp * rows.work.pp,
        rate_rps=np.zeros(len(at[0])),
    )


def _thinned(designs: Designs, traffic: Traffic) -> Floats:
    """Burstiness at one engine: the more engines share the traffic, the nearer to Poisson.

    At least as many engines are needed as full load takes.
    """
    costs, lengths = designs.costs, traffic.lengths
    token_s = costs.sequence_s + costs.kv_token_s * lengths.mean_context_tokens
    work_s = lengths.mean_decode_steps * np.asarray(token_s) + lengths.prompts.mean_work_s(costs)
    engines = np.maximum(1.0, traffic.busy_rate_rps * np.asarray(work_s))
    return np.asarray(1 + (traffic.arrival_scv - 1) / np.broadcast_to(engines, designs.pair.shape))


def _rated(designs: Designs, rate_rps: Floats) -> Designs:
    found = {field.name: getattr(designs, field.name) for field in fields(designs)}
    return Designs(**found | {"rate_rps": np.broadcast_to(rate_rps, designs.pair.shape) * designs.ranks})
