"""`sigcam explain`: pictures in, predictions and maps out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import (
    EXIT_FAILED,
    EXIT_USAGE,
    echo,
    engine_options,
    fail,
    reports_errors,
    say,
)
from sigcam.cli.pictures import find_pictures, output_names

if TYPE_CHECKING:
    from sigcam.runtime.errors import ImageError
    from sigcam.runtime.result import Explanation


@click.command(name="explain")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per picture and line.")
@click.option("--topk", type=click.IntRange(min=1), default=1, help="Maps for the K best classes.")
@click.option("--class", "classes", multiple=True, help="Map for this class, id or name; repeats.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for one file per map.")
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["png", "jpg", "webp", "npz", "json"]),
    default="png",
    show_default=True,
    help="What --out gets: overlays (png, jpg, webp) or numbers (npz, json).",
)
@click.option(
    "--method",
    help="scorecam, ablationcam or eigencam instead of the artifact's own CAM method; the first "
    "two take many passes.",
)
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    help="Head graph, where it isn't MODEL's name with .head.onnx.",
)
@engine_options
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--max-pixels", type=click.IntRange(min=1), help="Refuse pictures with more pixels than this."
)
@reports_errors
def command(
    model: Path,
    pictures: tuple[str, ...],
    as_json: bool,
    topk: int,
    classes: tuple[str, ...],
    out: Path | None,
    suffix: str,
    method: str | None,
    head: Path | None,
    engine: dict[str, Any],
    batch_size: int,
    max_pixels: int | None,
) -> None:
    """Predict and explain PICTURES (files, folders, globs) with MODEL.

    A picture that can't be read is reported and the others are done; the exit code then
    is 1.
    """
    from sigcam.runtime.errors import ImageError
    from sigcam.runtime.files import check_writable
    from sigcam.runtime.image import DEFAULT_MAX_PIXELS
    from sigcam.runtime.session import load

    if classes and topk != 1:
        fail("--class and --topk exclude each other; name the classes or count them", EXIT_USAGE)
    paths = list(find_pictures(pictures))
    names = output_names(paths, pictures) if out is not None else []
    if out is not None:
        check_writable(out / f"map.{suffix}")
    failed = 0
    with load(
        model,
        head=head,
        batch_size=batch_size,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        **engine,
    ) as session:
        meter = _Meter(len(paths), session.passes(method))
        results = session.stream(
            paths,
            classes=list(classes) or None,
            top_k=topk,
            on_error="return",
            method=method,
            progress=meter.report,
        )
        for index, result in enumerate(meter.count(results)):
            if isinstance(result, ImageError):
                failed += 1
                say(f"error: {result}")
                continue
            _print(paths[index], result, as_json)
            if out is not None:
                for explanation in result:
                    label = "" if len(result) == 1 else f"-{explanation.class_id}"
                    explanation.save(out / f"{names[index]}{label}.{suffix}")
    if failed:
        fail(f"{failed} of {len(paths)} pictures could not be explained", EXIT_FAILED)


class _Meter:
    """A bar over all pictures, which counts passes where a picture takes several."""

    def __init__(self, pictures: int, passes: int) -> None:
        from tqdm import tqdm

        self._passes = passes
        self._done = 0
        total = pictures * passes
        # Only for a person who waits: never in a log file, never for a single step.
        hidden = total < 2 or not sys.stderr.isatty()
        unit = "picture" if passes == 1 else "pass"
        self._bar = tqdm(total=total, unit=unit, disable=hidden, file=sys.stderr)

    def report(self, done: int, total: int) -> None:
        """Called after each run of the engine, with the passes of the picture at hand."""
        if total > 1:
            self._show(self._done * self._passes + done)

    def count(
        self, results: Iterator[list[Explanation] | ImageError]
    ) -> Iterator[list[Explanation] | ImageError]:
        """The results as they come, each a picture done."""
        with self._bar:
            for result in results:
                self._done += 1
                self._show(self._done * self._passes)
                yield result

    def _show(self, steps: int) -> None:
        self._bar.update(steps - self._bar.n)


def _print(path: Path, explanations: list[Explanation], as_json: bool) -> None:
    if as_json:
        record = {"picture": str(path), "explanations": [e.to_dict() for e in explanations]}
        echo(json.dumps(record, ensure_ascii=False))
        return
    for explanation in explanations:
        parts = [str(path), explanation.label, f"probability {explanation.probability:.3f}"]
        if explanation.evidence is not None:
            parts.append(f"evidence {explanation.evidence:.3f}")
        boxes = explanation.boxes()
        if boxes:
            box = boxes[0]
            parts.append(f"box {box.x0},{box.y0},{box.x1},{box.y1}")
        if not explanation.valid:
            parts.append("no evidence in the picture (the map is empty)")
        echo("\t".join(parts))
