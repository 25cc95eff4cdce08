"""`sigcam evaluate`: what artifacts are worth on a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sigcam.cli.common import backend_options, echo, options, reports_errors, say

_FORMATS = ["auto", "wsol", "voc", "coco", "csv", "folders"]
_FAITHFULNESS = ["confidence", "insertion", "deletion", "road"]

_data_options = options(
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        required=True,
        help="Data set: wsolevaluation's text files, Pascal VOC, COCO instances, a CSV file of "
        "images and classes, or class folders.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(_FORMATS),
        default="auto",
        show_default=True,
        help="Which of these it is.",
    ),
    click.option(
        "--metadata", type=click.Path(path_type=Path), help="wsol: folder of the text files."
    ),
    click.option("--split", help="Which part of the data set, where it has several."),
    click.option(
        "--root", type=click.Path(path_type=Path), help="Folder that the images are relative to."
    ),
    click.option("--mask-root", type=click.Path(path_type=Path), help="wsol: the same for masks."),
    click.option(
        "--first-pixel",
        type=click.IntRange(0, 1),
        help="voc: number of the first row and column: 1 (the default), 0 for ImageNet's files.",
    ),
    click.option(
        "--skip-bad",
        is_flag=True,
        help="Leave out what is wrong with the data set and go on; the report lists it.",
    ),
)

_metric_options = options(
    click.option(
        "--threshold",
        type=float,
        default=0.2,
        show_default=True,
        help="Share of the map's maximum that a box of GT-known and Top-1 Loc goes around.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="Of the pointing game, in pixels of a square of 224; 15 is usual elsewhere.",
    ),
    click.option(
        "--faithfulness",
        "faithfulness",
        multiple=True,
        type=click.Choice([*_FAITHFULNESS, "none"]),
        help="Repeats. confidence (Average Drop, % Increase) takes a second run of each image, "
        "road 14 more, insertion and deletion one more than --steps each.  [default: confidence]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=224,
        show_default=True,
        help="Of insertion and deletion.",
    ),
    click.option(
        "--resamples",
        type=click.IntRange(min=1),
        default=2000,
        show_default=True,
        help="Drawings of the bootstrap intervals.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of these drawings."),
)


@click.command(name="evaluate")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@_data_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the report; an evaluation that was interrupted there goes on.",
)
@_metric_options
@backend_options
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that read images, as many that score maps, and twice as many that change "
    "images for --faithfulness.  [default: half of the cores]",
)
@reports_errors
def command(
    models: tuple[Path, ...],
    data: Path,
    form: str,
    metadata: Path | None,
    split: str | None,
    root: Path | None,
    mask_root: Path | None,
    first_pixel: int | None,
    skip_bad: bool,
    out: Path,
    threshold: float,
    tolerance: float,
    faithfulness: tuple[str, ...],
    steps: int,
    resamples: int,
    seed: int,
    backend_options: dict[str, Any],
    batch_size: int,
    workers: int | None,
) -> None:
    r"""Score the maps of MODELS on a data set; the others are compared with the first.

    \b
    Localisation as in Choe et al. 2020 where there are boxes or masks: Top-1 and
    GT-known Loc, MaxBoxAccV2, PxAP, pointing game, energy inside. Faithfulness on any
    images: Average Drop, % Increase, insertion, deletion, ROAD.
    Writes report.html, report.md, report.json and images.csv, and prints their paths.
    """
    from sigcam.core.errors import UsageError
    from sigcam.evaluate import EvaluateOptions, evaluate, open_dataset
    from sigcam.evaluate.reports import summarise, write_reports
    from sigcam.runtime.backends.base import BackendOptions

    if "none" in faithfulness and len(faithfulness) > 1:
        raise UsageError("--faithfulness none goes with no other; leave it out")
    backend = backend_options.pop("backend")
    own = {} if workers is None else {"workers": workers}
    chosen = EvaluateOptions(
        backend=backend,
        backend_options=BackendOptions(**backend_options, batch_size=batch_size),
        batch_size=batch_size,
        threshold=threshold,
        tolerance=tolerance,
        faithfulness=tuple(one for one in faithfulness if one != "none")
        if faithfulness
        else ("confidence",),
        steps=steps,
        skip_bad=skip_bad,
        **own,
    )
    say(f"reading and checking {data}")
    dataset = open_dataset(
        data, form, metadata=metadata, split=split, root=root, mask_root=mask_root,
        first_pixel=first_pixel, skip_bad=skip_bad,
    )  # fmt: skip
    for one in dataset.problems:
        say(f"left out: {one}")
    say(f"{len(dataset)} images ({dataset.format}), {len(models)} artifacts")
    with _Bar() as bar:
        found = evaluate(models, dataset, out, chosen, progress=bar)
    summary = summarise(found, resamples=resamples, seed=seed)
    if found.seconds:
        share = found.backend_seconds / found.seconds
        done = len(dataset) - found.resumed
        say(f"{done} images in {found.seconds:.1f} s, {share:.0%} of it in a backend")
    for path in write_reports(summary, found.gallery, out):
        echo(str(path))


class _Bar:
    """A bar on standard error, with the time left."""

    def __enter__(self) -> _Bar:  # noqa: PYI034 (Self is new in Python 3.11)
        self._bar: Any = None
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            # What an earlier run did must not count in the rate.
            self._bar = tqdm(
                total=total, initial=done, desc="evaluate", unit="image", file=sys.stderr
            )
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
