"""Line charts as SVG text, for a page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sigcam.core.types import Array

# Okabe and Ito's palette, told apart by colour-blind eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44


class Line(NamedTuple):
    """A line of a chart: its label, points [n] each, colour's number and dash's number."""

    label: str
    x: Array
    y: Array
    colour: int
    dash: int = 0


def chart(lines: Sequence[Line], x_label: str, y_label: str, x_end: float, y_end: float) -> str:
    """An SVG with axes from 0; points that aren't finite are left out.

    Args:
        lines: at least one.
        x_label: of the horizontal axis.
        y_label: of the vertical one.
        x_end: where the horizontal axis ends.
        y_end: where the vertical one ends.
    """

    def place(x: float, y: float) -> str:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / x_end
        down = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / y_end
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="'
        f'{html.escape(y_label)} over {html.escape(x_label)}">'
    ]
    for step in range(6):
        x, y = x_end * step / 5, y_end * step / 5
        (x0, y0), (x1, _), (_, y1) = (
            tuple(map(float, place(*at).split(","))) for at in ((0, 0), (x_end, y), (x, y_end))
        )
        across, down = (tuple(map(float, place(*at).split(","))) for at in ((x, 0), (0, y)))
        parts.append(f'<line class="CAM" x1="{across[0]}" y1="{y0}" x2="{across[0]}" y2="{y1}"/>')
        parts.append(f'<line class="CAM" x1="{x0}" y1="{down[1]}" x2="{x1}" y2="{down[1]}"/>')
        parts.append(f'<text x="{across[0]}" y="{y0 + 16}" text-anchor="middle">{x:g}</text>')
        parts.append(f'<text x="{x0 - 6}" y="{down[1] + 4}" text-anchor="end">{y:g}</text>')
    middle = _LEFT + (_WIDTH - _LEFT - _RIGHT) / 2
    centre = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text x="14" y="{centre}" text-anchor="middle" transform="rotate(-90 14 {centre})">'
        f"{html.escape(y_label)}</text>"
    )
    for line in lines:
        known = np.isfinite(line.x) & np.isfinite(line.y)
        points = " ".join(
            place(float(x), float(y)) for x, y in _thinned(line.x[known], line.y[known])
        )
        dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else ""
        colour = COLOURS[line.colour % len(COLOURS)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}>'
            f"<title>{html.escape(line.label)}</title></polyline>"
        )
    return "".join(parts) + "</svg>" + _legend(lines)


def _thinned(x: Array, y: Array) -> list[tuple[float, float]]:
    """Every point where the line changes; of straight stretches the ends."""
    if len(x) < 3:
        return list(zip(x.tolist(), y.tolist(), strict=True))
    bend = np.diff(y[1:]) * np.diff(x[:-1]) != np.diff(y[:-1]) * np.diff(x[1:])
    kept = np.concatenate([[True], bend, [True]])
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 28 8" width="28" height="8"><line x1="0" y1="4" x2="28" y2="4" '
        f'stroke="{COLOURS[line.colour % len(COLOURS)]}" stroke-width="2.4"'
        + (f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else "")
        + f"/></svg> {html.escape(line.label)}</li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'
