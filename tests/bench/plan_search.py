"""How fast the search is: all configurations in closed form, and the best of them simulated.

python tests/bench/plan_search.py [--top 8]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import read_yaml_object
from planner.questions import question_file, question_of
from planner.search.closed import prepare, search
from planner.search.plan_for import plan_for
from planner.search.question import PlanQuestion
from planner.search.traffic import Traffic

CONFIGS = Path(__file__).parents[2] / "configs"
QUESTIONS = ("chat-l40s", "chat-h100", "rag-h100", "reasoning-h200", "chat-spot", "rag-ascend")
WIDE = ("reasoning-h200", ("h100_sxm", "h200_sxm", "b200_sxm", "l40s", "mi300x"))
"""The question with the most configurations, asked about more devices: above 10,000."""
CONFIGURATIONS, SEARCH_LIMIT_S, VERIFY_LIMIT_S = 10_000, 0.150, 15.0
ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--top", type=int, default=8, help="candidates that are simulated")
    arguments = parser.parse_args()
    print("question, configurations, search in ms (per 10,000, of the limit), whole plan in s (of the limit)")
    for name in QUESTIONS:
        tell(name, read_yaml_object(CONFIGS / f"question.{name}.yaml"), arguments.top)
    base, systems = WIDE
    tell("wide", {**read_yaml_object(CONFIGS / f"question.{base}.yaml"), "system": list(systems)}, arguments.top)
    return 0


def tell(name: str, tree: dict[str, Any], top: int) -> None:
    """Ask one question and print its line."""
    question = replace(question_of(question_file(tree, file=name), CONFIGS), verify_top=top)
    count, search_s = closed(question)
    began_s = time.perf_counter()
    plan_for(replace(question, maximise_rate=False))
    plan_s = time.perf_counter() - began_s
    scaled_s = search_s * CONFIGURATIONS / count
    print(
        f"{name:>16} {count:15,} {1e3 * search_s:10.1f} {1e3 * scaled_s:8.1f} ms {scaled_s / SEARCH_LIMIT_S:9.2f} "
        f"{plan_s:7.2f} {plan_s / VERIFY_LIMIT_S:9.2f}"
    )


def closed(question: PlanQuestion) -> tuple[int, float]:
    """(configurations, the best of some rounds)."""
    traffic, rounds_s, count = Traffic.under(question.slo, question.workload), [], 0
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        count = search(prepare(question, traffic)).considered
        rounds_s.append(time.perf_counter() - began_s)
    return count, min(rounds_s)


if __name__ == "__main__":
    raise SystemExit(main())
