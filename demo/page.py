"""The demo's page: one HTML file with its images inside."""

from __future__ import annotations

import base64
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.core.files import write_text
from sigcam.demo.images import CREDITS
from sigcam.images.overlay import OverlayOptions

if TYPE_CHECKING:
    from sigcam.demo.timing import Timing
    from sigcam.runtime.explanation import Explanation

TEMPLATE = Path(__file__).with_name("page.html")
BOX_THRESHOLD = 0.2
WIDTH = 480
TITLES = {"softmax": "softmax CAM", "centred": "centred CAM", "sigmoid": "sigmoid map"}
"""The maps' names and titles, in the order of the page."""


@dataclass(frozen=True)
class Panel:
    """One image with its maps.

    Attributes:
        name: the image's file.
        maps: an explanation by each of `TITLES`.
    """

    name: str
    maps: Mapping[str, Explanation]


@dataclass(frozen=True)
class ShiftRow:
    """Every image explained after a shift of the softmax weights.

    Attributes:
        text: what was done to the weights.
        maps: by each of `TITLES` one explanation per image.
    """

    text: str
    maps: Mapping[str, Sequence[Explanation]]


def write_page(
    path: Path,
    panels: Sequence[Panel],
    shifts: Sequence[ShiftRow],
    timing: Timing,
    trained_on: str,
) -> Path:
    """Writes the page to `path` whole or not at all, and returns `path`."""
    height, width = panels[0].maps["sigmoid"].image.shape[:2]
    shown = {panel.name for panel in panels}
    credits_shown = [text for name, text in CREDITS.items() if name in shown]
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        version=escape(version("sigcam")),
        trained_on=escape(trained_on),
        threshold=f"{BOX_THRESHOLD:g}",
        panels="\n".join(_panel(panel) for panel in panels),
        shifts=_shift_blocks(panels, shifts),
        rounds=len(timing.seconds["classification"]),
        machine=escape(f"{os.cpu_count()} cores, {platform.machine()}"),
        timing=_timing_rows(timing),
        image_size=f"{width}x{height}",
        credits=escape("Images: " + "; ".join(credits_shown) + "." if credits_shown else ""),
    )
    write_text(path, page)
    return path


def _panel(panel: Panel) -> str:
    sigmoid = panel.maps["sigmoid"]
    evidence = "" if sigmoid.evidence is None else f", evidence {sigmoid.evidence:.3f}"
    figures = [
        _figure(
            sigmoid.image,
            sigmoid.label,
            f"{panel.name}: probability {sigmoid.probability:.3f}{evidence}",
        )
    ]
    for name, title in TITLES.items():
        one = panel.maps[name]
        box = BOX_THRESHOLD if name == "sigmoid" else None
        title = f"{title}, box" if box else title
        figures.append(_figure(one.overlay(OverlayOptions(boxes=box)), title, _remark(one)))
    return f'<div class="row four">{"".join(figures)}</div>'


def _remark(explanation: Explanation) -> str:
    return "" if explanation.valid else "no positive evidence: the map is empty"


def _shift_blocks(panels: Sequence[Panel], shifts: Sequence[ShiftRow]) -> str:
    """Renders a row per image and map, with a column for each shift."""
    parts = []
    for index, panel in enumerate(panels):
        label = panel.maps["sigmoid"].label
        parts.append(f"<h3>{escape(label)} ({escape(panel.name)})</h3>")
        figures = []
        for name, title in TITLES.items():
            for row in shifts:
                found = row.maps[name][index]
                text = f"{row.text}; {found.label} {found.probability:.5f}"
                drift = _drift(found, shifts[0].maps[name][index])
                figures.append(_figure(found.overlay(), title, text + drift))
        parts.append(f'<div class="row">{"".join(figures)}</div>')
    return "\n".join(parts)


def _drift(explanation: Explanation, base: Explanation) -> str:
    """Says how far a map is from the unshifted one, in words."""
    if explanation is base:
        return ""
    if not explanation.valid:
        return "; no positive evidence left, the map is empty"
    difference = float(np.abs(explanation.heatmap - base.heatmap).max())
    return f"; largest change of the map {difference:.3f}"


def _timing_rows(timing: Timing) -> str:
    rows = (
        ("backend only", "classification alone", "classification", "classification"),
        ("backend only", "the same graph loaded again (the noise)", "control", "classification"),
        ("backend only", "classification and map", "with_map", "classification"),
        ("end to end", "explain(), over the backend run with map", "explain", "with_map"),
    )
    return "\n".join(
        f"<tr><td>{scope}</td><td>{what}</td>"
        f'<td class="number">{timing.median_ms(name):.2f} ms</td>'
        f'<td class="number">{timing.ratio(name, over):.3f}</td></tr>'
        for scope, what, name, over in rows
    )


def _figure(image: npt.NDArray[np.uint8], title: str, text: str) -> str:
    caption = (f"<b>{escape(title)}</b> " if title else "") + escape(text)
    return (
        f'<figure><img src="{_data_url(image)}" alt="{escape(title or text or "map")}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_url(image: npt.NDArray[np.uint8]) -> str:
    """Encodes the image as a JPEG inside a data URL, at most `WIDTH` pixels wide."""
    height, width = image.shape[:2]
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
