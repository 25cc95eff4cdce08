"""Draws line charts as SVG text, for a page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sigcam.core.types import Array

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart by colour-blind eyes."""

DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Patterns of a line, as SVG writes them; the first one is solid."""

_WIDTH, _HEIGHT = 520, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        label: what the legend calls it.
        x: floats [n].
        y: floats [n]; points that aren't finite are left out.
        colour: index in `COLOURS`, which begin again after the last one.
        dash: index in `DASHES`, which begin again after the last one.
    """

    label: str
    x: Array
    y: Array
    colour: int
    dash: int = 0


def chart(lines: Sequence[Line], x_label: str, y_label: str, x_end: float, y_end: float) -> str:
    """Draws lines over axes that begin at 0, with a legend below.

    Args:
        lines: at least one.
        x_label: what the horizontal axis shows.
        y_label: what the vertical axis shows.
        x_end: where the horizontal axis ends.
        y_end: where the vertical axis ends.

    Returns:
        HTML: an SVG and a list.

    Example:
        >>> line = Line("model.onnx", np.array([0.0, 1.0]), np.array([0.0, 50.0]), colour=0)
        >>> text = chart([line], "threshold", "images, %", x_end=1, y_end=100)
        >>> text.startswith("<svg"), text.count("<polyline"), text.endswith("</ul>")
        (True, 1, True)
    """

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / x_end
        down = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / y_end
        return round(across, 1), round(down, 1)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="'
        f'{html.escape(y_label)} over {html.escape(x_label)}">'
    ]
    left, bottom = place(0, 0)
    right, top = place(x_end, y_end)
    for step in range(6):
        x, y = x_end * step / 5, y_end * step / 5
        across, down = place(x, y)
        parts += [
            f'<line class="rule" x1="{across}" y1="{bottom}" x2="{across}" y2="{top}"/>',
            f'<line class="rule" x1="{left}" y1="{down}" x2="{right}" y2="{down}"/>',
            f'<text x="{across}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>',
            f'<text x="{left - 6}" y="{down + 4}" text-anchor="end">{y:g}</text>',
        ]
    middle, centre = (left + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text x="14" y="{centre}" text-anchor="middle" transform="rotate(-90 14 {centre})">'
        f"{html.escape(y_label)}</text>"
    )
    for line in lines:
        known = np.isfinite(line.x) & np.isfinite(line.y)
        places = [place(*point) for point in _thinned(line.x[known], line.y[known])]
        points = " ".join(f"{across},{down}" for across, down in places)
        parts.append(
            f'<polyline points="{points}" fill="none" {_stroke(line, 1.8)}>'
            f"<title>{html.escape(line.label)}</title></polyline>"
        )
    return "".join(parts) + "</svg>" + _legend(lines)


def _stroke(line: Line, width: float) -> str:
    """Writes a line's colour, width and pattern as SVG attributes."""
    dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else ""
    return f'stroke="{COLOURS[line.colour % len(COLOURS)]}" stroke-width="{width}"{dash}'


def _thinned(x: Array, y: Array) -> list[tuple[float, float]]:
    """Returns the points where a line changes, and the ends of its straight stretches."""
    if len(x) < 3:
        return list(zip(x.tolist(), y.tolist(), strict=True))
    bend = np.diff(y[1:]) * np.diff(x[:-1]) != np.diff(y[:-1]) * np.diff(x[1:])
    kept = np.concatenate([[True], bend, [True]])
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 28 8" width="28" height="8"><line x1="0" y1="4" x2="28" y2="4" '
        f"{_stroke(line, 2.4)}/></svg> {html.escape(line.label)}</li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'
