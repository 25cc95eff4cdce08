"""Writes the report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template

import numpy as np

from sigcam.data import left_out
from sigcam.evaluate.gallery import Gallery, GalleryImage
from sigcam.evaluate.localization.box_accuracy import LOC_IOU
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS, SIZE, THRESHOLDS
from sigcam.evaluate.model import PREDICTED
from sigcam.evaluate.reports.charts import Line, chart
from sigcam.evaluate.reports.summary import Summary, heatmap_of, sum_of, versions
from sigcam.evaluate.reports.tables import explanation_of, head_of, rows_of

_LISTED = 50
"""Most images that are listed as left out; the JSON has all."""


def page(summary: Summary, gallery: Gallery) -> str:
    """Returns the page's HTML.

    Args:
        summary: the evaluation and its numbers.
        gallery: the images to show; may be empty.

    Example:
        Path("report.html").write_text(page(summarise(evaluation), evaluation.gallery))
    """
    run = summary.evaluation
    template = files("sigcam.evaluate.reports").joinpath("page.html").read_text(encoding="utf-8")
    seconds = f"{run.seconds:.1f} s, in {run.backend_seconds:.1f} s of which a backend ran"
    again = f" {run.resumed} images were done by an earlier run." if run.resumed else ""
    return Template(template).substitute(
        title=html.escape(f"Evaluation on {run.dataset.name}"),
        about=html.escape(
            f"{len(run.dataset)} images ({run.dataset.format}), {len(run.artifacts)} artifacts. "
            f"This run took {seconds}.{again}"
        ),
        table=_table(head_of(summary), rows_of(summary)),
        explanation=html.escape(explanation_of(summary)),
        charts=_charts(summary),
        gallery=_gallery(gallery, [one.name for one in run.artifacts]),
        artifacts=_artifacts(summary),
        left_out=_left_out(summary),
        method=html.escape(_method(summary)),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table, with the verdict at a cell's end in its colour."""

    def cell(text: str) -> str:
        value, space, verdict = text.rpartition(" ")
        if space and verdict in ("better", "worse"):
            return f'{html.escape(value)} <span class="{verdict}">{verdict}</span>'
        return html.escape(text)

    top = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _charts(summary: Summary) -> str:
    names = [one.name for one in summary.evaluation.artifacts]
    pairs = list(zip(names, summary.curves, strict=True))
    drawn = [
        _chart(
            f"Box of the largest contour, IoU {LOC_IOU:g}",
            [
                Line(name, THRESHOLDS, curves.largest, index)
                for index, (name, curves) in enumerate(pairs)
                if curves.largest is not None
            ],
            ("threshold", "GT-known Loc, %", 1, 100),
        ),
        _chart(
            "Any contour's box, by IoU (MaxBoxAccV2)",
            [
                Line(f"{name}: {iou:g}", THRESHOLDS, values, index, dash)
                for index, (name, curves) in enumerate(pairs)
                if curves.every is not None
                for dash, (iou, values) in enumerate(zip(IOU_THRESHOLDS, curves.every, strict=True))
            ],
            ("threshold", "images with a hit, %", 1, 100),
        ),
        _chart(
            "Pixels against masks (PxAP)",
            [
                Line(name, 100 * curves.recall, 100 * curves.precision, index)
                for index, (name, curves) in enumerate(pairs)
                if curves.recall is not None and curves.precision is not None
            ],
            ("recall, %", "precision, %", 100, 100),
        ),
    ]
    if not any(drawn):
        return ""
    return f'<h2>Curves</h2><div class="charts">{"".join(drawn)}</div>'


def _chart(title: str, lines: Sequence[Line], axes: tuple[str, str, float, float]) -> str:
    """Draws a chart below its title; nothing without lines."""
    return f"<div><h3>{html.escape(title)}</h3>{chart(lines, *axes)}</div>" if lines else ""


def _gallery(gallery: Gallery, names: Sequence[str]) -> str:
    if not gallery.worst:
        return ""
    parts = [
        f"<h2>Images</h2><p class=dim>Chosen by the first artifact's "
        f"{html.escape(gallery.by)}. Boxes of the heatmap in white, true ones in green.</p>"
    ]
    for title, images in (("Worst", gallery.worst), ("Best", gallery.best)):
        parts.append(f"<h3>{title}</h3>")
        parts += [_image(image, names) for image in images]
    return "".join(parts)


def _image(image: GalleryImage, names: Sequence[str]) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(name)} on {html.escape(image.name)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(overlay).decode()}">'
        f"<figcaption><b>{html.escape(name)}</b><br>{html.escape(caption)}</figcaption></figure>"
        for name, caption, overlay in zip(names, image.captions, image.overlays, strict=True)
    )
    return (
        f'<div class="image"><div class="dim">{html.escape(image.name)}: {image.score:.2f}</div>'
        f'<div class="row">{figures}</div></div>'
    )


def _artifacts(summary: Summary) -> str:
    rows = []
    for one in summary.evaluation.artifacts:
        spec = one.spec
        given = spec["preprocessing"]
        size = f"{given['width']} x {given['height']}, {given['rule']}"
        rows.append(
            [
                one.name, spec["method"], spec["branch"], sum_of(one), size,
                one.backend, heatmap_of(one), one.digest[:12],
            ]
        )  # fmt: skip
    head = [
        "artifact",
        "method",
        "branch",
        "weighted sum",
        "input",
        "backend",
        "heatmap of",
        "SHA-256",
    ]
    return _table(head, rows)


def _left_out(summary: Summary) -> str:
    dataset = summary.evaluation.dataset
    lines = left_out(dataset.problems, dataset.notes, _LISTED)
    if not lines:
        return ""
    body = "".join(f"<li>{html.escape(one)}</li>" for one in lines)
    return f"<h2>Left out, and taken for granted</h2><ul class=dim>{body}</ul>"


def _method(summary: Summary) -> str:
    """Says in plain text how the numbers were measured."""
    options = summary.evaluation.options
    several = summary.evaluation.artifacts[0].spec.get("task") == "multi-label"
    whose = "each image's own" if several else "the predicted"
    enlarged = (
        "enlarged bicubically"
        if options.interpolation == "bicubic"
        else "enlarged bilinearly (the protocol's are bicubic)"
    )
    if any("grid_pointing" in one.metric.key for one in summary.results):
        parts = [
            "Grid pointing game (Boehle et al. 2021): of the map of each tile's class the positive "
            "part, enlarged bilinearly, inside its own tile and everywhere; the mean over the "
            "tiles of a mosaic, of images that all artifacts classify right."
        ]
    else:
        parts = [
            f"Localisation as in Choe et al. 2020 (wsolevaluation): CAMs are {enlarged} to "
            f"heatmaps of {SIZE} x {SIZE} and min-max normalised, boxes go around contours with "
            f"both ends inside, at {len(THRESHOLDS)} thresholds; the fixed threshold is "
            f"{options.threshold:g} of the heatmap's maximum.",
            f"Faithfulness is measured on the network's input, of {whose} class by the "
            "classifier's own head.",
        ]
        if several:
            parts.append(
                "Multi-label: every class of an image is measured by itself; recall is the share "
                f"of these with a probability of at least {PREDICTED:g}."
            )
    parts += [
        f"Intervals: percentile bootstrap, seed {summary.seed}.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
    ]
    if any(not np.all(records["valid"]) for records in summary.evaluation.records):
        counts = ", ".join(
            f"{one.name} {int((~records['valid']).sum())}"
            for one, records in zip(
                summary.evaluation.artifacts, summary.evaluation.records, strict=True
            )
        )
        parts.append(f"Images without a heatmap (constant CAM): {counts}.")
    return " ".join(parts)
