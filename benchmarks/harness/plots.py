"""Plots as small PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from sigcam.core.files import write_bytes

SIZE = (9.0, 3.8)
DPI = 90
MANY = 6  # names along an axis that fit beside each other


def bars(
    path: Path,
    title: str,
    label: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float] | None]],
    lines: Mapping[str, float] | None = None,
    *,
    log: bool = False,
) -> Path:
    """Bars side by side, one group for each name, with intervals.

    Args:
        path: of the PNG.
        title: of the plot.
        label: of the vertical axis.
        groups: names along the axis.
        series: name to [median, low, high] for each group; None where there is no figure.
        lines: name to a height at which a dashed line is drawn.
        log: whether the axis is logarithmic.
    """
    many = len(groups) > MANY
    size = (max(SIZE[0], 0.9 * len(groups)), SIZE[1] + 1.2) if many else SIZE
    figure, axes = plt.subplots(figsize=size)
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        found = [(place, v) for place, v in enumerate(values) if v is not None]
        where = [place + width * (index - (len(series) - 1) / 2) for place, _ in found]
        heights = [v[0] for _, v in found]
        errors = [[v[0] - v[1] for _, v in found], [v[2] - v[0] for _, v in found]]
        axes.bar(where, heights, width, yerr=errors, label=name, error_kw={"linewidth": 0.8})
    for index, (name, height) in enumerate((lines or {}).items()):
        axes.axhline(height, color=f"C{7 + index}", linestyle="--", linewidth=1, label=name)
    slanted = {"rotation": 30, "ha": "right"} if many else {}
    # A slanted label of several lines would lie over the next one.
    labels = [name.replace("\n", " ") for name in groups] if many else groups
    axes.set_xticks(range(len(groups)), labels, fontsize=8, **slanted)
    if log:
        axes.set_yscale("log")
    return _finish(figure, axes, path, title, label)


def curves(
    path: Path,
    title: str,
    labels: tuple[str, str],
    series: Mapping[str, Sequence[tuple[float, Sequence[float]]]],
    *,
    log: str = "",
) -> Path:
    """Lines through medians, with intervals as bands.

    Args:
        path: of the PNG.
        title: of the plot.
        labels: of the two axes.
        series: name to pairs of x and [median, low, high].
        log: "x", "y" or both for logarithmic axes.
    """
    figure, axes = plt.subplots(figsize=SIZE)
    for name, points in series.items():
        xs = [x for x, _ in points]
        axes.plot(xs, [v[0] for _, v in points], marker="o", markersize=3, label=name)
        axes.fill_between(xs, [v[1] for _, v in points], [v[2] for _, v in points], alpha=0.2)
    if "x" in log:
        axes.set_xscale("log")
        places = sorted({x for points in series.values() for x, _ in points})
        if len(places) <= 2 * MANY:  # 1, 2, 4 rather than powers of ten
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.set_xticks([], minor=True)
    if "y" in log:
        axes.set_yscale("log")
    axes.set_xlabel(labels[0])
    axes.grid(alpha=0.3)
    return _finish(figure, axes, path, title, labels[1])


def _finish(figure: Any, axes: Any, path: Path, title: str, label: str) -> Path:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(label)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    data = io.BytesIO()
    # Without the version of matplotlib, so that equal figures give an equal file.
    figure.savefig(data, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data.getvalue())
    return path
