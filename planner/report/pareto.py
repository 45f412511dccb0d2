"""The plot of an answer: what each configuration costs, how many GPUs it takes, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from planner.plan import Plan
from planner.report.answers import candidates
from planner.report.page import page
from planner.report.scene import Dot, Line, Scene, Shape, Words, png, svg, ticks
from planner.search.answers import Answer
from planner.types import PlannerError

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
ENDINGS = (".png", ".svg", ".html")
PANEL_WIDTH, PANEL_HEIGHT = 480.0, 320.0
LEFT, TOP, BOTTOM, GAP = 60.0, 56.0, 110.0, 80.0
# Beyond this many devices colours repeat, and a legend says less than the pointer does.
LEGEND_ENTRIES = 8


@dataclass(frozen=True)
class Mark:
    """One dot before it has a place: x in USD/h."""

    x: float
    y: float
    colour: str
    title: str
    chosen: bool = False


def check_ending(path: PurePath) -> None:
    """Raises PlannerError for a file that no plot can be written to."""
    if path.suffix.lower() not in ENDINGS:
        raise PlannerError("settings", "--plot", str(path), "is no kind of plot", "end its name in .png, .svg or .html")


def pareto_file(answer: Answer, path: PurePath, *, title: str) -> bytes:
    """What stands in the plot's file, by its ending: .png, .svg, or .html with the table. Raises PlannerError."""
    check_ending(path)
    scene = pareto_scene(answer, title=title)
    match path.suffix.lower():
        case ".png":
            return png(scene)
        case ".svg":
            return svg(scene).encode()
        case _:
            return page(answer, svg(scene), title=title).encode()


def pareto_scene(answer: Answer, *, title: str) -> Scene:
    """Two panels: cost against GPUs for the best configurations, cost against P(SLO met) for the simulated plans."""
    devices = sorted({point.device for point in answer.points} | set(map(_device, _plans(answer))))
    colours = {device: COLOURS[at % len(COLOURS)] for at, device in enumerate(devices)}
    points = [
        Mark(
            point.usd_per_hour,
            float(point.gpus),
            colours[point.device],
            f"{point.name}: {point.usd_per_hour:.2f} USD/h, {point.gpus} GPUs, up to {point.rate_rps:.3g} requests/s",
        )
        for point in answer.points
    ]
    plans = [
        Mark(
            plan.cost.expected_usd_per_hour,
            plan.prediction.probability,
            colours[_device((name, plan))],
            f"{name}: {plan.cost.expected_usd_per_hour:.2f} USD/h, P(SLO met) {plan.prediction.probability:.0%}",
            chosen=True,
        )
        for name, plan in _plans(answer)
    ]
    front = [
        Mark(mark.x, float(plan.gpus), mark.colour, mark.title, chosen=True)
        for mark, (_, plan) in zip(plans, _plans(answer), strict=True)
    ]
    shapes: list[Shape] = [Words(LEFT, 20, title, 15, colour="#111111")]
    shapes += _panel(LEFT, [*points, *front], "GPUs", None)
    shapes += _panel(LEFT + PANEL_WIDTH + GAP, plans, "P(SLO met)", (0.0, 1.0))
    shapes += _legend(colours)
    return Scene(LEFT + 2 * PANEL_WIDTH + GAP + 20, TOP + PANEL_HEIGHT + BOTTOM, tuple(shapes))


def _plans(answer: Answer) -> list[tuple[str, Plan]]:
    """The simulated plans that an answer names, each once."""
    return [(one.name, one.plan) for one, _ in candidates(answer)]


def _device(named: tuple[str, Plan]) -> str:
    """The device of a plan's decoding pool, by which it gets its colour."""
    pools = named[1].pools.values()
    return next(pool.device for pool in pools if pool.role != "prefill")


def _panel(left: float, marks: Sequence[Mark], label: str, bounds: tuple[float, float] | None) -> Iterator[Shape]:
    """Axes with round numbers, the dots, and those that were chosen on top of them."""
    high_x = max((mark.x for mark in marks), default=1.0) * 1.05 or 1.0
    low_y, high_y = bounds or (0.0, max((mark.y for mark in marks), default=1.0) * 1.1 or 1.0)
    floor = TOP + PANEL_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / high_x * PANEL_WIDTH, floor - (y - low_y) / (high_y - low_y) * PANEL_HEIGHT

    for at in ticks(0.0, high_x):
        x, _ = place(at, low_y)
        yield Line(x, TOP, x, floor, "#eeeeee")
        yield Words(x, floor + 18, f"{at:g}", anchor="middle")
    for at in ticks(low_y, high_y):
        _, y = place(0.0, at)
        yield Line(left, y, left + PANEL_WIDTH, y, "#eeeeee")
        yield Words(left - 8, y + 4, f"{at:g}", anchor="end")
    yield Line(left, floor, left + PANEL_WIDTH, floor, "#333333")
    yield Line(left, TOP, left, floor, "#333333")
    yield Words(left + PANEL_WIDTH / 2, floor + 38, "USD per hour", anchor="middle")
    yield Words(left, TOP - 6, label)
    for mark in sorted(marks, key=lambda mark: mark.chosen):
        yield Dot(*place(mark.x, mark.y), 6 if mark.chosen else 3.5, mark.colour, mark.chosen, mark.title)


def _legend(colours: dict[str, str]) -> Iterator[Shape]:
    y = TOP + PANEL_HEIGHT + 65
    x = LEFT
    for device, colour in list(colours.items())[:LEGEND_ENTRIES]:
        yield Dot(x + 5, y - 4, 5, colour)
        yield Words(x + 15, y, device)
        x += 35 + 7.5 * len(device)
    yield Words(
        LEFT, y + 24, "rings: simulated plans; dots: the best configurations of the closed forms", 11, colour="#666666"
    )
