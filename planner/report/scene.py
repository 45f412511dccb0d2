"""A drawing as a list of lines, dots and words, in points from the top left; `svg` and `png` put it on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Literal

from planner.types import PlannerError

FONT = "system-ui, sans-serif"
# Pixels of a PNG per point: sharp on the screens of today.
PNG_SCALE = 2

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    colour: str = "#cccccc"
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """`title` shows under the pointer, where the paper has pointers."""

    x: float
    y: float
    radius: float
    colour: str
    hollow: bool = False
    title: str = ""


@dataclass(frozen=True)
class Words:
    x: float
    y: float  # of the baseline
    text: str
    size: float = 12.0
    anchor: Anchor = "start"
    colour: str = "#333333"


Shape = Line | Dot | Words


@dataclass(frozen=True)
class Scene:
    width: float
    height: float
    shapes: tuple[Shape, ...]


def svg(scene: Scene) -> str:
    """One element, to stand in an HTML page or a file of its own."""
    size = f'width="{scene.width:g}" height="{scene.height:g}" viewBox="0 0 {scene.width:g} {scene.height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">'
    return "\n".join([head, *map(_element, scene.shapes), "</svg>"])


def _element(shape: Shape) -> str:
    if isinstance(shape, Line):
        ends = f'x1="{shape.x1:.1f}" y1="{shape.y1:.1f}" x2="{shape.x2:.1f}" y2="{shape.y2:.1f}"'
        return f'<line {ends} stroke="{shape.colour}" stroke-width="{shape.width:g}"/>'
    if isinstance(shape, Dot):
        paint = f'fill="white" stroke="{shape.colour}" stroke-width="2"' if shape.hollow else f'fill="{shape.colour}"'
        at = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
        return f"<circle {at} {paint}><title>{escape(shape.title)}</title></circle>"
    place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
    return f'<text {place} fill="{shape.colour}">{escape(shape.text)}</text>'


def png(scene: Scene) -> bytes:
    """The same as a picture. Raises PlannerError where Pillow is not installed."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        remedy = "install pillow, or name a file that ends in .html or .svg"
        raise PlannerError(
            "settings", "--plot", ".png", "needs the package pillow, which is not here", remedy
        ) from None
    image = Image.new("RGB", (round(scene.width * PNG_SCALE), round(scene.height * PNG_SCALE)), "white")
    draw = ImageDraw.Draw(image)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for shape in scene.shapes:
        if isinstance(shape, Line):
            draw.line(_scaled(shape.x1, shape.y1, shape.x2, shape.y2), shape.colour, round(shape.width * PNG_SCALE))
        elif isinstance(shape, Dot):
            r = shape.radius
            box = _scaled(shape.x - r, shape.y - r, shape.x + r, shape.y + r)
            fill = "white" if shape.hollow else shape.colour
            draw.ellipse(box, fill=fill, outline=shape.colour, width=2 * PNG_SCALE)
        else:
            font = ImageFont.load_default(shape.size * PNG_SCALE)
            draw.text((shape.x * PNG_SCALE, shape.y * PNG_SCALE), shape.text, shape.colour, font, anchors[shape.anchor])
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _scaled(*lengths: float) -> tuple[float, ...]:
    return tuple(length * PNG_SCALE for length in lengths)


def ticks(low: float, high: float, *, about: int = 5) -> Iterator[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / about
    power = 10.0 ** _floor_log10(rough)
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    at = -(-low // step) * step
    while at <= high + step * 1e-9:
        yield at
        at += step


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".split("e")[1])
