"""`sigcam evaluate`: scores artifacts on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import backend_options, echo, options, reports_errors, say
from sigcam.cli.data import data_options, open_named
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    from sigcam.images.upsample import Interpolation

_FAITHFULNESS = ["confidence", "insertion", "deletion", "road"]

_mosaic_options = options(
    click.option(
        "--mosaic",
        type=click.IntRange(2, 8),
        metavar="N",
        help="Play the grid pointing game instead: N x N images of different classes in one, of "
        "those that all artifacts classify right. Needs artifacts with --classes input; how "
        "heatmaps are scored otherwise (--threshold and so on) doesn't count.",
    ),
    click.option("--mosaics", type=click.IntRange(min=1), help="Most mosaics that are made."),
    click.option(
        "--min-right",
        type=click.FloatRange(0, 1),
        help="Smallest share of the images that must be classified right.  [default: 0.5]",
    ),
)

_metric_options = options(
    click.option(
        "--threshold",
        type=float,
        default=0.2,
        show_default=True,
        help="Share of the heatmap's maximum at which GT-known and Top-1 Loc draw their boxes.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="How far beside the object the pointing game counts a hit, in pixels of a square of "
        "224; 15 is usual elsewhere.",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(["bicubic", "bilinear"]),
        default="bicubic",
        show_default=True,
        help="How CAMs are enlarged to heatmaps: bicubic as in Choe et al. 2020.",
    ),
    click.option(
        "--faithfulness",
        multiple=True,
        type=click.Choice([*_FAITHFULNESS, "none"]),
        help="Which faithfulness metrics are measured; repeats. confidence (Average Drop, % "
        "Increase) takes a second run of each image, road 14 more, insertion and deletion one more "
        "than --steps each.  [default: confidence]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=224,
        show_default=True,
        help="In how many steps insertion and deletion change an image.",
    ),
    click.option(
        "--resamples",
        type=click.IntRange(min=1),
        default=2000,
        show_default=True,
        help="How often images are drawn for the bootstrap intervals.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="What they are drawn with, and mosaics with --mosaic.",
    ),
)


@click.command(name="evaluate")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the report; an evaluation that was interrupted there goes on.",
)
@_metric_options
@_mosaic_options
@backend_options
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Images in one run of the backend.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that read images, as many that score CAMs, and twice as many that change "
    "images for --faithfulness.  [default: half of the cores]",
)
@reports_errors
def command(
    models: tuple[Path, ...],
    data: dict[str, Any],
    out: Path,
    threshold: float,
    tolerance: float,
    interpolation: Interpolation,
    faithfulness: tuple[str, ...],
    steps: int,
    resamples: int,
    seed: int,
    mosaic: int | None,
    mosaics: int | None,
    min_right: float | None,
    backend_options: dict[str, Any],
    batch_size: int,
    workers: int | None,
) -> None:
    r"""Score the heatmaps of MODELS on a data set; the others are compared with the first.

    \b
    Localisation as in Choe et al. 2020 where there are boxes or masks: Top-1 and
    GT-known Loc, MaxBoxAccV2, PxAP, pointing game, energy inside. Faithfulness on any
    images: Average Drop, % Increase, insertion, deletion, ROAD. Class sensitivity
    where the artifact takes class ids. With --mosaic N, the grid pointing game.
    Writes report.html, report.md, report.json and images.csv, and prints their paths.
    """
    from sigcam.core.artifact import read_spec
    from sigcam.core.errors import UsageError
    from sigcam.core.files import check_writable
    from sigcam.evaluate import (
        EvaluateOptions,
        MosaicOptions,
        evaluate_artifacts,
        evaluate_mosaics,
    )
    from sigcam.evaluate.reports import FILES, summarise, write_reports
    from sigcam.runtime.backends.base import BackendOptions

    if "none" in faithfulness and len(faithfulness) > 1:
        raise UsageError("--faithfulness none goes with no other; leave it out")
    backend = backend_options.pop("backend")
    _check_mosaic(mosaic, mosaics, min_right, faithfulness)
    given: dict[str, Any] = {} if workers is None else {"workers": workers}
    chosen = EvaluateOptions(
        backend=backend,
        backend_options=BackendOptions(**backend_options, batch_size=batch_size),
        batch_size=batch_size,
        threshold=threshold,
        tolerance=tolerance,
        interpolation=interpolation,
        faithfulness=tuple(name for name in faithfulness or ("confidence",) if name != "none"),
        steps=steps,
        skip_bad=data["skip_bad"],
        **given,
    )
    several = read_spec(models[0]).task == "multi-label" if models else False
    dataset = open_named({**data, "written": (out,)}, multi_label=several)
    if out.is_dir():  # a new folder is made once the models are known to be of use
        for name in FILES:
            check_writable(out / name)
    say(f"{len(dataset)} images ({dataset.format}), {len(models)} artifacts")
    with _ImageBar() as bar:
        if mosaic is None:
            evaluation = evaluate_artifacts(models, dataset, out, chosen, progress=bar)
        else:
            asked: dict[str, Any] = {"count": mosaics, "min_right": min_right, "seed": seed}
            made = MosaicOptions(mosaic, **{k: v for k, v in asked.items() if v is not None})
            evaluation = evaluate_mosaics(models, dataset, out, made, chosen, progress=bar, say=say)
    summary = summarise(evaluation, resamples=resamples, seed=seed)
    if evaluation.seconds:
        share = evaluation.backend_seconds / evaluation.seconds
        done = len(evaluation.dataset) - evaluation.resumed
        what = "images" if mosaic is None else "mosaics"
        say(f"{done} {what} in {evaluation.seconds:.1f} s, {share:.0%} of it in a backend")
    for path in write_reports(summary, evaluation.gallery, out):
        echo(str(path))


def _check_mosaic(
    mosaic: int | None, mosaics: int | None, min_right: float | None, faithfulness: tuple[str, ...]
) -> None:
    from sigcam.core.errors import UsageError

    for name, value in (("--mosaics", mosaics), ("--min-right", min_right)):
        if mosaic is None and value is not None:
            raise UsageError(f"{name} goes with --mosaic; give its size, or leave {name} out")
    if mosaic is not None and any(name != "none" for name in faithfulness):
        raise UsageError(
            "--faithfulness is measured on single images; leave it out, or evaluate without "
            "--mosaic in another folder"
        )


class _ImageBar:
    """A bar over the images to evaluate, whose number is known at the first report."""

    def __enter__(self) -> _ImageBar:  # noqa: PYI034 (Self is new in Python 3.11)
        self._bar: Bar | None = None
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Bar(total, unit="image", label="evaluate", done=done)
        self._bar.advance_to(done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
