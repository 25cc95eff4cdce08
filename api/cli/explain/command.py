"""`sigcam explain`: images in, predictions and maps out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import EXIT_USAGE, backend_options, fail, options, reports_errors
from sigcam.cli.explain.find import Found, find_images, names_from
from sigcam.cli.explain.images import explain_images
from sigcam.cli.explain.live import explain_live
from sigcam.cli.explain.moving import find_moving
from sigcam.cli.explain.output import Plan, default_readers, print_left_out
from sigcam.cli.explain.outputs import file_named, outputs_of
from sigcam.cli.explain.overlay import HELP as OVERLAY_HELP
from sigcam.cli.explain.overlay import check_overlay, overlay_options
from sigcam.cli.explain.video import Choice, explain_video
from sigcam.core.errors import UsageError
from sigcam.core.inputs import keep as keep_inputs

if TYPE_CHECKING:
    from sigcam.runtime.backends.base import HeatmapKind

_run_options = options(
    click.option(
        "--readers",
        type=click.IntRange(min=1),
        help="Threads that read images ahead of the backend.  [default: half of the cores]",
    ),
    click.option(
        "--every",
        type=click.IntRange(min=1),
        help="Of a video, explain every Nth frame only; those between show the latest map.",
    ),
    click.option(
        "--fps",
        type=click.FloatRange(min=0, min_open=True),
        help="Of a video or live source, explain at most so many frames a second of its time.",
    ),
    click.option(
        "--reconnect",
        type=click.IntRange(min=0),
        help="Open a live source again up to N times in a row when it fails or ends.",
    ),
    click.option(
        "--verbose", is_flag=True, help="Say how fast it went, and how busy the backend was."
    ),
)


@click.command(name="explain")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1)
@click.option(
    "--files-from",
    "names",
    metavar="FILE|-",
    help="Further files and folders, one a line (or with zero bytes between); - is standard input.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object per image and line: its explanations with the files that were written, "
    "or its error. Files of folders that aren't taken have one, too.",
)
@click.option("--topk", type=click.IntRange(min=1), default=1, help="Maps for the K best classes.")
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    help="Maps for every class of at least this probability, such as 0.5; for multi-label models.",
)
@click.option("--class", "classes", multiple=True, help="Map for this class, id or name; repeats.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for one file per map, or the file itself for one map; for a video, the overlay "
    "video's file. Images aren't written over; in a folder of images, it is left out of these.",
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["png", "jpg", "webp", "npz", "json"]),
    help="What --out gets: overlays (png, jpg, webp) or numbers (npz, json).  [default: png]",
)
@click.option("--overlay", multiple=True, help=OVERLAY_HELP)
@click.option(
    "--method",
    help="scorecam, ablationcam, eigencam or rise instead of the artifact's own CAM method; all "
    "but eigencam take many passes.",
)
@click.option("--masks", type=int, help="Random masks of rise, one pass each; 4000 by default.")
@click.option("--cells", type=int, help="Cells of rise's masks, each way; 7 by default.")
@click.option("--keep", type=float, help="Share of cells that rise's masks show; 0.5 by default.")
@click.option("--seed", type=int, help="What rise's masks follow from; 0 by default.")
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    help="Head graph, where it isn't MODEL's name with .head.onnx.",
)
@backend_options
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--heatmaps",
    type=click.Choice(["float32", "uint8", "lazy"]),
    default="float32",
    show_default=True,
    help="What a GPU makes: heatmaps, or CAMs alone (lazy), of which the CPU makes heatmaps.",
)
@click.option(
    "--max-pixels", type=click.IntRange(min=1), help="Refuse images with more pixels than this."
)
@_run_options
@reports_errors
def command(
    model: Path,
    images: tuple[str, ...],
    names: str | None,
    as_json: bool,
    topk: int,
    min_probability: float | None,
    classes: tuple[str, ...],
    out: Path | None,
    suffix: str | None,
    overlay: tuple[str, ...],
    method: str | None,
    masks: int | None,
    cells: int | None,
    keep: float | None,
    seed: int | None,
    head: Path | None,
    backend_options: dict[str, Any],
    batch_size: int,
    heatmaps: HeatmapKind,
    max_pixels: int | None,
    readers: int | None,
    every: int | None,
    fps: float | None,
    reconnect: int | None,
    verbose: bool,
) -> None:
    """Predict and explain IMAGES (files, folders, globs, - or one video) with MODEL.

    A - is an image on standard input; FILE#2 is the third frame of an animated GIF, WebP, PNG
    or AVIF, or the third page of a TIFF. An image that can't be read, or whose map can't be
    written, is reported and the others are done; the exit code then is 1. So it is for a
    video that is truncated or damaged: it is done as far as it goes.

    In place of a video, name a live source: a camera (camera:0, camera:/dev/video0), a stream
    (rtsp://..., http://...) or a named pipe. The newest frame is explained each time, those that
    come meanwhile are dropped and counted; Ctrl-C ends it and leaves a whole overlay video.
    """
    from sigcam.core.files import check_writable
    from sigcam.images.decode import DEFAULT_MAX_PIXELS
    from sigcam.runtime.session import load

    if sum((bool(classes), topk != 1, min_probability is not None)) > 1:
        fail(
            "--class, --topk and --min-probability exclude each other; name the classes, count "
            "them, or say how probable they must be",
            EXIT_USAGE,
        )
    drawn, shares_range = overlay_options(overlay) if out is not None else (None, False)
    numbers = {"masks": masks, "cells": cells, "keep": keep, "seed": seed}
    plan = Plan(
        list(classes) or None,
        topk,
        method,
        readers or default_readers(),
        as_json,
        verbose,
        {name: value for name, value in numbers.items() if value is not None},
        min_probability,
        drawn,
        shares_range,
    )
    choice, most = Choice(every, fps), max_pixels or DEFAULT_MAX_PIXELS
    moving_only = {"every": every, "fps": fps, "reconnect": reconnect}
    moving = find_moving(images, plan, out, suffix, moving_only)
    check_overlay(overlay, out, suffix or "png", moving)
    outputs = None
    if moving is None:
        found = _found(images, names, out, as_json)
        outputs = None if out is None else outputs_of(found, plan, out, suffix)
    else:
        if names is not None:
            raise UsageError("a video is explained alone; leave out --files-from")
        if isinstance(moving.path, Path):
            keep_inputs([moving.path])
        if out is not None:
            check_writable(out)
    with load(
        model,
        head=head,
        # A live frame doesn't wait for others.
        batch_size=1 if moving is not None and moving.live else batch_size,
        heatmaps=heatmaps,
        max_pixels=most,
        **backend_options,
    ) as session:
        if moving is not None and moving.live:
            explain_live(session, moving.name, plan, out, choice, most, reconnect or 0)
        elif moving is not None:
            explain_video(session, moving.path, plan, out, choice, most)
        else:
            explain_images(session, found.images, plan, outputs)


def _found(images: tuple[str, ...], names: str | None, out: Path | None, as_json: bool) -> Found:
    """Finds the images, says what isn't taken, and keeps them from being written over."""
    if not images and names is None:
        raise click.UsageError("Missing argument 'IMAGES...'; name files, folders or globs.")
    if names == "-" and "-" in images:
        raise UsageError("standard input is either an image (-) or a list (--files-from -)")
    listed = [] if names is None else names_from(names)
    folder = None if out is None or file_named(out) is not None else out
    found = find_images(images, listed, folder)
    print_left_out(found.left_out, as_json=as_json)
    found.check()
    for image in found.images:
        file, numbered, _ = str(image).rpartition("#")
        keep_inputs([image, Path(file)] if numbered else [image])  # a frame's file counts
    return found
