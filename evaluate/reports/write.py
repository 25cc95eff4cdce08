"""Writes all forms of a report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.files import atomic_path, write_text
from sigcam.data import left_out
from sigcam.evaluate.gallery import Gallery
from sigcam.evaluate.reports.page import page
from sigcam.evaluate.reports.summary import Summary, heatmap_of, sum_of
from sigcam.evaluate.reports.tables import explanation_of, head_of, markdown_table, rows_of
from sigcam.evaluate.results.records import UNKNOWN

FILES = ("report.html", "report.md", "report.json", "images.csv")
"""The names of the files that `write_reports` writes."""

_COLUMNS = (
    "predicted", "probability", "correct", "valid", "iou", "pointing", "energy", "sensitivity",
    "after", "insertion", "deletion", "road",
)  # fmt: skip
"""The fields of `records.RECORD` that images.csv has, for each artifact."""


def write_reports(summary: Summary, gallery: Gallery, folder: Path) -> list[Path]:
    """Writes report.html, report.md, report.json and images.csv.

    Args:
        summary: the evaluation and its numbers.
        gallery: the images that the page shows.
        folder: where the files are written; it exists.

    Returns:
        The files' paths.

    Raises:
        StorageError: a file can't be written.

    Example:
        evaluation = evaluate_artifacts(["model.onnx"], dataset, "run/")
        write_reports(summarise(evaluation), evaluation.gallery, Path("run"))
    """
    paths = [folder / name for name in FILES]
    *plain, table = paths
    texts = (
        page(summary, gallery),
        _markdown(summary),
        json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n",
    )
    for path, text in zip(plain, texts, strict=True):
        write_text(path, text)
    with atomic_path(table) as temporary:
        _write_images(summary, temporary)
    return paths


def _markdown(summary: Summary) -> str:
    run = summary.evaluation
    artifacts = [
        [
            one.name, one.spec["method"], one.spec["branch"], sum_of(one),
            one.backend, heatmap_of(one),
        ]
        for one in run.artifacts
    ]  # fmt: skip
    parts = [
        f"# Evaluation on {run.dataset.name}\n\n{len(run.dataset)} images.\n\n",
        markdown_table(head_of(summary), rows_of(summary)),
        f"\n{explanation_of(summary)}\n\n",
        markdown_table(
            ["artifact", "method", "branch", "weighted sum", "backend", "heatmap of"], artifacts
        ),
    ]
    lines = left_out(run.dataset.problems, run.dataset.notes)
    if lines:
        listed = "".join(f"- {one}\n" for one in lines)
        parts.append(f"\nLeft out, and taken for granted:\n\n{listed}")
    return "".join(parts)


def _write_images(summary: Summary, path: Path) -> None:
    """Writes a row for each image: of each artifact the columns of its record."""
    run = summary.evaluation
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["image", "label"]
            + [f"{one.name}: {column}" for one in run.artifacts for column in _COLUMNS]
        )
        for index, sample in enumerate(run.dataset.samples):
            row = [sample.name, "" if sample.label is None else str(sample.label)]
            for records in run.records:
                row += [_cell(records[index][column]) for column in _COLUMNS]
            writer.writerow(row)


def _cell(value: Any) -> str:
    """Writes a record's value so that it can be read back exactly; nothing for an unknown one."""
    if isinstance(value, np.bool_):
        return str(int(value))
    if isinstance(value, np.integer):
        return "" if value == UNKNOWN else str(int(value))
    return str(value) if math.isfinite(value) else ""
