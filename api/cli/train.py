"""`sigcam train`: the sigmoid branch of a trained classifier."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import (
    changed_preprocessing,
    echo,
    import_from_here,
    is_first_process,
    model_options,
    options,
    preprocessing_options,
    reports_errors,
    say,
)

if TYPE_CHECKING:
    from sigcam.train.data import ImageList
    from sigcam.train.settings import TrainResult

data_options = options(
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        required=True,
        help="A folder of class folders, a CSV of path and class, or a folder with "
        "image_ids.txt and class_labels.txt.",
    ),
    click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        help="Folder that the paths in --data are relative to.",
    ),
    click.option("--views", default=12, show_default=True, help="Cached views of each image."),
    click.option(
        "--crop-scale",
        type=(float, float),
        default=(0.35, 1.0),
        show_default=True,
        help="Share of the area that a random crop keeps.",
    ),
    click.option("--flip/--no-flip", default=True, show_default=True, help="Random flips."),
    click.option(
        "--cached/--live",
        default=True,
        show_default=True,
        help="Features once, kept on disk; or new crops through the backbone every epoch.",
    ),
    click.option("--cache-dir", type=click.Path(path_type=Path), help="Folder of the features."),
    click.option("--workers", type=click.IntRange(min=1), help="Decoding threads."),
    click.option("--strict", is_flag=True, help="Stop at an image that can't be read."),
    click.option("--val-fraction", default=0.0, show_default=True, help="Share held out."),
)

fit_options = options(
    click.option(
        "--optimizer", type=click.Choice(["adam", "lbfgs"]), default="adam", show_default=True
    ),
    click.option("--learning-rate", "--lr", type=float, help="0.003 for Adam."),
    click.option(
        "--weight-decay",
        type=float,
        help="0.15 over the number of classes by default; 0.0005 for heads of several layers.",
    ),
    click.option("--epochs", type=click.IntRange(min=1), help="3 for Adam, 20 for L-BFGS."),
    click.option("--batch-size", type=click.IntRange(min=1), help="32 for Adam."),
    click.option("--positive-weight", type=float, help="Of the loss; classes - 1 by default."),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine"]),
        default="constant",
        show_default=True,
    ),
    click.option(
        "--cache-dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Of the features on disk.",
    ),
    click.option("--seed", default=0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:0 ..."),
)


@click.command(name="train")
@model_options
@click.option(
    "--branch-layer",
    help="Layer after which the sigmoid branch begins; found by itself when left out.",
)
@click.option(
    "--new-classes",
    is_flag=True,
    help="The data has other classes than the model: re-make the last layer and train it "
    "too, on the same features.",
)
@data_options
@fit_options
@preprocessing_options
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Folder of checkpoints and metrics; beside --out by default.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --run-dir.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the values in the branch file.",
)
@click.option(
    "--trained-on", help="What the data is, in words; name and counts are used by default."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The .safetensors file."
)
@reports_errors
def command(
    arch: str | None,
    weights: str | None,
    num_classes: int | None,
    branch_layer: str | None,
    new_classes: bool,
    data: Path,
    data_root: Path | None,
    views: int,
    crop_scale: tuple[float, float],
    flip: bool,
    cache_dir: Path | None,
    workers: int | None,
    strict: bool,
    size: int | None,
    rule: str | None,
    resize: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    run_dir: Path | None,
    resume: bool,
    dtype: str,
    trained_on: str | None,
    out: Path,
    **fit: Any,
) -> None:
    """Train the sigmoid branch of a classifier on images with class labels.

    The classifier itself stays as it is. The branch is written to --out, whose path is
    printed. Several GPUs: torchrun --nproc-per-node N -m sigcam train ...
    """
    from sigcam.classifier.branch_file import BranchInfo, save_branch
    from sigcam.classifier.build import assemble
    from sigcam.core.files import check_writable
    from sigcam.train.augment import Augmentation
    from sigcam.train.checkpoint import CHECKPOINT
    from sigcam.train.loop import Reading, train_branch, train_classifier
    from sigcam.train.settings import TrainSettings
    from sigcam.train.sources import open_data

    check_writable(out)
    import_from_here()
    settings = TrainSettings(**fit)
    images = open_data(data, data_root)
    say("loading the model")
    built = assemble(
        arch=arch,
        weights=weights,
        num_classes=num_classes,
        branch_layer=branch_layer,
        size=size,
        new_classes=_class_count(images) if new_classes else None,
    )
    if built.checkpoint is not None:
        say(f"training goes on from the sigmoid branch in {built.checkpoint}")
    preprocessing = changed_preprocessing(
        built.preprocessing, rule=rule, resize=resize, mean=mean, std=std
    )
    run_dir = run_dir or out.with_suffix(".run")
    common: dict[str, Any] = {
        "preprocessing": preprocessing,
        "augmentation": Augmentation(views, crop_scale, flip, settings.seed),
        "reading": Reading(cache_dir, workers, strict),
        "class_names": built.class_names,
    }
    if new_classes:
        say("training the new softmax head")
        probe = replace(settings, positive_weight=None)
        probe_dir = run_dir / "softmax"
        train_classifier(built.dual, images, probe, run_dir=probe_dir, resume=resume, **common)
        # Stopped in the first stage, a run has no checkpoint of the second yet.
        resume = resume and (run_dir / CHECKPOINT).exists()
    say("training the sigmoid branch (Ctrl-C keeps a checkpoint, --resume goes on from it)")
    result = train_branch(built.dual, images, settings, run_dir=run_dir, resume=resume, **common)
    info = BranchInfo(
        architecture=built.architecture,
        branch_layer=built.dual.branch_layer,
        num_classes=built.dual.num_classes,
        preprocessing=preprocessing,
        trained_on=trained_on or f"{images.name}: {_counts(result)}",
        positive_weight=result.positive_weight,
        weights=weights,
        loaded_classes=num_classes,
        class_names=built.class_names or _names(images, built.dual.num_classes),
        replaced_classes=new_classes,
        settings={
            **asdict(settings),
            "weight_decay": result.weight_decay,
            "views": views,
            "crop_scale": crop_scale,
            "flip": flip,
        },
    )
    # Under torchrun all processes hold the same branch; one writes it.
    if is_first_process():
        save_branch(out, built.dual, info, dtype)  # type: ignore[arg-type]  # click has checked
        report(result)
        echo(str(out))


def report(result: TrainResult) -> None:
    """Says how the run ended, and which images were left out."""
    last = result.history[-1]
    held = "" if last.val_top1 is None else f", held-out top-1 {last.val_top1:.3f}"
    say(f"loss {last.loss:.4f}, top-1 of the branch {last.top1:.3f}{held}; {_counts(result)}")
    for reason in result.failed.values():
        say(f"left out: {reason}")


def _counts(result: TrainResult) -> str:
    views = f"{result.views} views of each" if result.views else "new views every epoch"
    return f"{result.images} images, {views}"


def _class_count(images: ImageList) -> int:
    return len(images.class_names) or max(images.class_ids) + 1


def _names(images: ImageList, num_classes: int) -> tuple[str, ...]:
    return images.class_names if len(images.class_names) == num_classes else ()
