"""The simulator and the closed forms against a running engine: TTFT and TPOT at P50, P90 and P99, at three rates.

    python tests/bench/simulator_vs_engine.py --base-url http://127.0.0.1:8000 --shape smollm2-135m --system here \\
        --kind cpu --max-num-seqs 32 --max-num-batched-tokens 2048 --kv-blocks 182 --block-size 128

First it profiles the engine with a few closed loops (or reads --profile) and fits the costs of a step to them. Then it
sends open loops that the profile never saw, and simulates the very same requests at the same times. With --kind cpu
and --enforce-eager as the engine runs. It measures the engine alone: nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

import yaml
from parts.engine_loads import METRICS, SHARES, EngineLoad, Found, compare, draw_lengths, loads_of

from loadtest.profile import choose_trials, facts_of, measure
from loadtest.profile.options import Deployment
from loadtest.types import LoadTestError, Target
from planner import PlannerError, Profile, read_profile, step_costs_of
from planner.profiled_costs import NAMES, rules_of, simulated

ENDPOINT = "/v1/completions"


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if not options.base_url:
        print("skipped: it needs a running engine (--base-url)")
        return 0
    target = Target(options.base_url, ENDPOINT)
    try:
        facts = facts_of(target)
        served = options.model or facts.model
        if not served:
            raise LoadTestError("the endpoint names no model: give --model")
        profile = read_profile(options.profile) if options.profile else _measure(target, served, options)
        if options.out:
            options.out.write_text(yaml.safe_dump(profile.document(), sort_keys=False), encoding="utf-8")
        costs, rules = step_costs_of(profile), rules_of(profile)
        _show_fit(profile, [getattr(costs, name) for name in NAMES], simulated(profile, costs))
        longest = options.max_model_len or facts.max_model_len_tokens or 4096
        lengths = draw_lengths(
            options.requests, isl=options.isl, osl=options.osl, cv=options.cv, longest=longest // 2, seed=options.seed
        )
        loads = loads_of(profile, costs, rules, lengths, options.loads, options.seed)
        _show_head(loads)
        for load in loads:
            _show(compare(target, served, profile, costs, rules, load))
    except (LoadTestError, PlannerError) as error:
        print(f"simulator_vs_engine: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-url", default="")
    parser.add_argument("--model", default="", help="name in the requests; the first served")
    parser.add_argument("--profile", type=Path, help="a profile of this engine; without it, one is measured")
    parser.add_argument("--out", type=Path, help="write the profile here")
    parser.add_argument("--shape", default="", help="the planner's name of the model")
    parser.add_argument("--system", default="here")
    parser.add_argument("--kind", default="gpu")
    parser.add_argument("--quant", default="")
    parser.add_argument("--enforce-eager", action="store_true")
    for name in ("--max-num-seqs", "--max-num-batched-tokens", "--kv-blocks", "--block-size", "--max-model-len"):
        parser.add_argument(name, type=int)
    parser.add_argument("--memory-gib", type=float)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="shares of the full rate")
    parser.add_argument("--requests", type=int, default=150, help="at each rate")
    parser.add_argument("--isl", type=float, default=200.0)
    parser.add_argument("--osl", type=float, default=64.0)
    parser.add_argument("--cv", type=float, default=0.6, help="of both lengths")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _measure(target: Target, served: str, options: argparse.Namespace) -> Profile:
    deployment = Deployment(
        model=options.shape or served, system=options.system, kind=options.kind, memory_gib=options.memory_gib,
        tp=1, pp=1, dp=1, ep=1, replicas=options.replicas, quant=options.quant,
        max_num_batched_tokens=options.max_num_batched_tokens, max_num_seqs=options.max_num_seqs,
        max_model_len_tokens=options.max_model_len, kv_blocks=options.kv_blocks, block_size_tokens=options.block_size,
        eager=options.enforce_eager,
    )  # fmt: skip
    facts = facts_of(target)
    trials = choose_trials(deployment.reach(facts), count=options.points)
    measured = measure(target, served, trials, seed=options.seed)
    if measured.stopped is not None:
        raise measured.stopped
    return deployment.profile(facts, measured.done, on=date.today())


def _show_fit(profile: Profile, costs: list[float], means_s: list[tuple[float, float]]) -> None:
    print("step costs, s: " + ", ".join(f"{name} {cost:.3g}" for name, cost in zip(NAMES, costs, strict=True)))
    print("profile, closed loops: mean TTFT and TPOT, measured / simulated, ms")
    for point, (ttft_s, tpot_s) in zip(profile.points, means_s, strict=True):
        tpot = f"{point.tpot_ms.mean:.1f}" if point.tpot_ms else "-"
        print(
            f"{point.concurrency or 0:>6.0f} clients x {point.isl:>5.0f} + {point.osl:>4.0f}"
            f"{point.ttft_ms.mean:>10.1f} /{1e3 * ttft_s:>8.1f}{tpot:>10} /{1e3 * tpot_s:>8.1f}",
            flush=True,
        )


def _show_head(loads: list[EngineLoad]) -> None:
    mean = loads[0].lengths.mean(axis=0)
    print(
        f"\nopen loops, Poisson, {len(loads[0].lengths)} requests of {mean[0]:.0f} + {mean[1]:.0f} tokens; P50/90/99 ms"
    )
    print(f"{'load':<22}{'':6}{'measured':>24}{'simulated':>24}{'closed form':>24}{'sim %':>18}")


def _show(found: Found) -> None:
    name = f"{found.load.rate_rps:.2f}/s ({found.load.share:.0%} full)"
    for metric in METRICS:
        measured, simulated_ms = found.measured[metric], found.simulated[metric]
        closed = _ms(found.closed_form[metric]) if found.closed_form else "no fit"
        errors = "".join(f"{100 * (s / m - 1):>+6.0f}" for m, s in zip(measured, simulated_ms, strict=True))
        print(f"{name:<22}{metric:<6}{_ms(measured):>24}{_ms(simulated_ms):>24}{closed:>24}{errors:>18}", flush=True)
        name = ""


def _ms(values: tuple[float, ...]) -> str:
    assert len(values) == len(SHARES)
    return " / ".join(f"{value:.1f}" if value < 1_000 else f"{value:.0f}" for value in values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
