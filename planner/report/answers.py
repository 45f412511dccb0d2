"""An answer of the search in words and tables: the plans to choose from, why, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from rich.table import Table

from planner.plan import ClassPrediction, Plan, PoolPlan, Quantiles, SpotPlan
from planner.report.values import milliseconds
from planner.search.answers import Answer, Candidate, Infeasible, Skipped

# What is left out of the short answer; `--explain` shows all.
SHORT_CHANGES, SHORT_SKIPPED = 4, 3


class Aim(StrEnum):
    """Which of the answer's plans is taken."""

    CHEAPEST = "cheapest"
    FEWEST = "fewest"
    SAFEST = "safest"


def chosen(answer: Answer, aim: Aim) -> Candidate:
    """The plan that the aim takes."""
    return {Aim.CHEAPEST: answer.cheapest, Aim.FEWEST: answer.fewest_gpus, Aim.SAFEST: answer.safest}[aim]


def candidates(answer: Answer, *, most: int | None = None) -> list[tuple[Candidate, tuple[Aim, ...]]]:
    """Each plan once, with the aims it answers, the cheapest first; `most` cuts those that answer none."""
    named = (*answer.pareto, answer.cheapest, answer.fewest_gpus, answer.safest)
    each = {_key(one): one for one in sorted(named, key=lambda one: (one.usd_per_hour, one.gpus, one.name))}
    aims = {key: tuple(aim for aim in Aim if _key(chosen(answer, aim)) == key) for key in each}
    rest = [key for key in each if not aims[key]]
    left_out = set() if most is None else set(rest[max(0, most - (len(each) - len(rest))) :])
    return [(one, aims[key]) for key, one in each.items() if key not in left_out]


def _key(one: Candidate) -> tuple[str, float]:
    """One fleet may be offered with spot and without it."""
    return one.name, one.usd_per_hour


def answer_table(answer: Answer, *, most: int | None = None) -> Table:
    """One line per plan. TTFT and TPOT are P50/P99 of the class that comes closest to its limit."""
    columns = ("", "plan", "GPUs", "USD/h", "(range)", "TTFT ms P50/P99", "TPOT ms P50/P99", "within SLO", "P(SLO met)")
    table = Table(*columns)
    for column in table.columns[2:]:
        column.justify = "right"
    for one, aims in candidates(answer, most=most):
        cost, worst = one.plan.cost, tightest(one.plan)
        table.add_row(
            ", ".join(aims),
            pools_text(one.plan),
            f"{one.plan.devices:g}",
            f"{cost.expected_usd_per_hour:.2f}",
            f"{cost.low_usd_per_hour:.2f}–{cost.high_usd_per_hour:.2f}",
            _two(worst.ttft_ms),
            _two(worst.tpot_ms),
            f"{worst.attainment.value:.2%}",
            f"{one.probability:.0%}",
        )
    return table


def tightest(plan: Plan) -> ClassPrediction:
    """The class with the least margin between what is met and what was promised."""
    return min(plan.prediction.classes.values(), key=lambda found: found.attainment.value - found.attainment.required)


def pools_text(plan: Plan) -> str:
    """`2 prefill + 6 decode x h100_sxm TP2 fp8`, pool by pool."""
    return " + ".join(_pool_text(pool) for pool in plan.pools.values())


def _pool_text(pool: PoolPlan) -> str:
    engine = pool.engine
    degrees = [f"TP{engine.tensor_parallel_size}"]
    degrees += [f"PP{engine.pipeline_parallel_size}"] if engine.pipeline_parallel_size > 1 else []
    degrees += [f"DP{engine.data_parallel_size}"] if engine.data_parallel_size > 1 else []
    degrees += ["EP"] if engine.enable_expert_parallel else []
    spot = f" ({pool.spot} on spot)" if pool.spot else ""
    return f"{pool.replicas} {pool.role} x {pool.device} {' '.join(degrees)} {pool.weights}{spot}"


def class_table(plan: Plan) -> Table:
    """What each class of requests will see: P50, P90 and P99."""
    table = Table("class", "ms", "P50", "P90", "P99", "within SLO", "promised")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, found in plan.prediction.classes.items():
        share = found.attainment
        shares = (f"{share.value:.2%} ({share.low:.2%}–{share.high:.2%})", f"{share.required:.2%}")
        for metric, values in (("TTFT", found.ttft_ms), ("TPOT", found.tpot_ms), ("E2E", found.e2e_ms)):
            if values is not None:
                cells = (milliseconds(values.p50), milliseconds(values.p90), milliseconds(values.p99))
                table.add_row(name, metric, *cells, *shares)
                name, shares = "", ("", "")
    return table


def plan_lines(plan: Plan) -> Iterator[str]:
    """What is run, and how sure the prediction is."""
    for name, pool in plan.pools.items():
        stored = f"; weights: {pool.checkpoint}" if pool.checkpoint else ""
        yield f"{name}: {_pool_text(pool)}, {pool.needed} needed; what limits a replica: {pool.limit}{stored}"
        yield f"  vllm serve {plan.model} {' '.join(pool.engine.flags)}"
        if pool.spot_terms is not None:
            yield from _spot_lines(pool.spot_terms)
    told = plan.prediction
    simulated = f"{told.method} ({told.requests:,} requests)" if told.requests else told.method
    yield (
        f"how sure: P(SLO met) {told.probability:.0%}; {simulated} with step times from {told.rung}, "
        f"TPOT ± {told.tpot_sigma:.0%}, TTFT ± {told.ttft_sigma:.0%} (one sigma)"
    )


def _spot_lines(spot: SpotPlan) -> Iterator[str]:
    yield (
        f"  spot market {spot.market}: up {spot.availability:.1%} of the time, enough replicas with probability "
        f"{spot.probability:.4f}; {spot.spare_replicas} to spare, a replacement is warm after {spot.warm_up_s:,.0f} s"
    )
    for notice in spot.notices:
        yield (
            f"  notice {notice.lead_s:g} s, {notice.lost} lost: {notice.moved_share:.0%} of the KV moves, "
            f"{notice.replayed_tokens:,.0f} tokens are replayed; headroom {notice.spare_replicas} costs "
            f"{notice.usd_per_hour:.2f} USD/h, without it {notice.misses:,.0f} requests miss"
        )


def reason_lines(answer: Answer, plan: Plan, *, explain: bool) -> Iterator[str]:
    """Why this plan, what would change it, what was left out, and what is doubtful."""
    for why in plan.why:
        yield f"why: {why}"
    for change in answer.changes if explain else answer.changes[:SHORT_CHANGES]:
        yield f"what if: {change.text}"
    yield from _searched(answer.considered, answer.fitting, answer.verified)
    yield from _skipped(answer.skipped, explain=explain)
    for warning in dict.fromkeys((*answer.warnings, *plan.warnings)):
        yield f"warning: {warning}"


def infeasible_lines(answer: Infeasible, *, explain: bool) -> Iterator[str]:
    """What binds, and the ways out."""
    yield f"no plan holds the SLO: {answer.problem} (what binds: {answer.constraint})"
    for way in answer.nearest:
        yield f"nearest {way.kind}: {way.text}"
    yield from _searched(answer.considered, answer.fitting, None)
    yield from _skipped(answer.skipped, explain=explain)
    for warning in answer.warnings:
        yield f"warning: {warning}"


def answer_tree(answer: Answer | Infeasible, aim: Aim) -> dict[str, object]:
    """For programs. `plan` is the one that the aim takes; it is missing where none is feasible."""
    tree: dict[str, object] = {"feasible": isinstance(answer, Answer)}
    if isinstance(answer, Answer):
        tree |= {"aim": aim.value, "plan": chosen(answer, aim).plan.document()}
    return tree | answer.model_dump(mode="json", exclude_none=True)


def _searched(considered: int, fitting: int, verified: int | None) -> Iterator[str]:
    simulated = "" if verified is None else f", {verified} simulated"
    yield f"searched: {considered:,} configurations, {fitting:,} fit into memory{simulated}"


def _skipped(skipped: Sequence[Skipped], *, explain: bool) -> Iterator[str]:
    shown = skipped if explain else skipped[:SHORT_SKIPPED]
    for one in shown:
        yield f"left out: {one.what}: {one.reason}"
    if len(shown) < len(skipped):
        yield f"left out: {len(skipped) - len(shown)} more (--explain names them)"


def _two(values: Quantiles | None) -> str:
    return "" if values is None else f"{milliseconds(values.p50)} / {milliseconds(values.p99)}"
