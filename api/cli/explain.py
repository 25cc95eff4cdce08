"""`sigcam explain`: pictures in, predictions and maps out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sigcam.cli.common import EXIT_FAILED, EXIT_USAGE, echo, fail, reports_errors, say
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
@click.option("--backend", default="auto", show_default=True, help="Engine that runs the model.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one inference.")
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
    backend: str,
    threads: int | None,
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
        backend,
        threads=threads,
        batch_size=batch_size,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
    ) as session:
        wanted = list(classes) or None
        results = session.stream(paths, classes=wanted, top_k=topk, on_error="return")
        for index, result in enumerate(_progress(results, len(paths))):
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


def _progress(
    results: Iterator[list[Explanation] | ImageError], total: int
) -> Iterator[list[Explanation] | ImageError]:
    from tqdm import tqdm

    # Only for a person who waits: never in a log file, never for a single picture.
    hidden = total < 2 or not sys.stderr.isatty()
    yield from tqdm(results, total=total, unit="picture", disable=hidden, file=sys.stderr)


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
