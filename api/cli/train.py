"""`sigcam train`: the sigmoid branch of a trained classifier."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

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
from sigcam.cli.data import check_apart, data_options, open_named, told
from sigcam.core.errors import DataError, UsageError
from sigcam.core.inputs import refuse_input
from sigcam.core.progress import somebody_waits

if TYPE_CHECKING:
    from sigcam.core.spec import ChannelOrder, Task
    from sigcam.data import Dataset
    from sigcam.train.features_by import FeaturesBy
    from sigcam.train.settings import TrainResult

view_options = options(
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
    click.option(
        "--features-by",
        type=click.Choice(["auto", "torch", "onnxruntime"]),
        default="auto",
        show_default=True,
        help="What computes cached features: PyTorch, ONNX Runtime on the CPU, or the faster one; "
        "they agree to 1e-5.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Decoding threads."),
    click.option("--strict", is_flag=True, help="Stop at an image that can't be decoded."),
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
    click.option(
        "--positive-weight",
        type=float,
        help="Of the loss; classes - 1 by default, for multi-label (classes - m) / m with m the "
        "classes of an image in the mean, for binary 1.",
    ),
    click.option(
        "--labels",
        type=click.Choice(["given", "predicted"]),
        default="given",
        show_default=True,
        help="The data's classes; or the classifier's own predictions, for images without "
        "classes (a plain folder, or any data set).",
    ),
    click.option(
        "--temperature",
        type=float,
        help="With --labels predicted: soft targets, softmax(logits / T), in place of the most "
        "probable class; sigmoid(logits / T) for multi-label and binary.",
    ),
    click.option(
        "--init",
        type=click.Choice(["default", "paper", "softmax"]),
        help="What the branch begins with: fresh parameters as PyTorch makes each layer, or as the "
        "paper says; or those of the softmax branch, centred, which classes without images keep.  "
        "[default: softmax with --labels predicted, default otherwise]",
    ),
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
    "--preset",
    type=click.Choice(["paper-cub", "paper-cars", "paper-imagenet", "paper-openimages"]),
    help="The paper's settings for that data set and --arch; options given beside it win.",
)
@click.option(
    "--method",
    type=click.Choice(["cam", "gradcam"]),
    help="With --preset: cam (the default), or gradcam for every other method.",
)
@click.option(
    "--new-classes",
    is_flag=True,
    help="The data has other classes than the model: re-make the last layer and train it "
    "too, on the same features.",
)
@data_options
@view_options
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
    task: Task | None,
    branch_layer: str | None,
    preset: str | None,
    method: str | None,
    new_classes: bool,
    data: dict[str, Any],
    views: int,
    crop_scale: tuple[float, float],
    flip: bool,
    cache_dir: Path | None,
    features_by: FeaturesBy,
    workers: int | None,
    strict: bool,
    size: tuple[int, int] | None,
    rule: str | None,
    resize: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    scale: float | None,
    channel_order: ChannelOrder | None,
    run_dir: Path | None,
    resume: bool,
    dtype: str,
    trained_on: str | None,
    out: Path,
    **fit: Any,
) -> None:
    """Train the sigmoid branch of a classifier on images, with class labels or without.

    The classifier itself stays as it is. The branch is written to --out, whose path is
    printed. Several GPUs: torchrun --nproc-per-node N -m sigcam train ...
    """
    from sigcam.classifier.build import build_classifier
    from sigcam.core.files import check_writable
    from sigcam.train.augment import Augmentation
    from sigcam.train.branch import train_branch
    from sigcam.train.settings import Reading, TrainSettings

    check_writable(out)
    import_from_here()
    fit |= {"crop_scale": crop_scale, "flip": flip, "size": size, "rule": rule}
    fit = _with_preset(preset, method, arch, fit)
    crop_scale, flip, size, rule = (fit.pop(k) for k in ("crop_scale", "flip", "size", "rule"))
    settings = TrainSettings(**fit)
    if new_classes and settings.labels == "predicted":
        raise UsageError("--new-classes trains a new last layer, which needs --labels given")
    folder = run_dir or out.with_suffix(".run")
    written = (folder,) if cache_dir is None else (folder, cache_dir)
    images = _Images({**data, "written": written}, settings.labels, task)
    say("loading the model")
    built = build_classifier(
        arch,
        weights=weights,
        num_classes=num_classes,
        branch_layer=branch_layer,
        task=task,
        size=size,
        mean=mean,
        std=std,
        scale=scale,
        channel_order=channel_order,
        new_classes=images.of(task).num_classes if new_classes else None,
    )
    for line in built.notes:
        say(line)
    dataset = images.of(task if new_classes else built.dual.task)
    refuse_input(out)  # now that all is known that is read
    if built.checkpoint is not None:
        say(f"training goes on from the sigmoid branch in {built.checkpoint}")
    trained = train_branch(
        built,
        dataset,
        settings,
        augmentation=Augmentation(views, crop_scale, flip, settings.seed),
        preprocessing=changed_preprocessing(built.preprocessing, rule=rule, resize=resize),
        reading=Reading(cache_dir, workers, strict, features_by),
        trained_on=trained_on,
        run_dir=folder,
        resume=resume,
        progress=somebody_waits(),
        say=say,
    )
    # Under torchrun all processes hold the same branch; one writes it.
    if is_first_process():
        trained.save(out, dtype)  # type: ignore[arg-type]  # click has checked
        report(trained.result, dataset, settings.labels)
        echo(str(out))


def _with_preset(
    name: str | None, method: str | None, arch: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the options with the preset's values in place of those that weren't typed.

    The preset's learning rate, epochs and batch size are for Adam, and left out where another
    optimizer was asked for.
    """
    from sigcam.train.presets import preset

    if name is None:
        if method is not None:
            raise UsageError("--method chooses the settings of a --preset; name one, or leave it")
        return given
    if arch is None:
        raise UsageError("a preset is for an architecture; name it (--arch)")
    chosen = preset(name, arch, method or "cam", given["seed"])  # type: ignore[arg-type]  # click
    values = asdict(chosen.settings)
    values |= {"size": chosen.size, "rule": chosen.rule, "flip": chosen.augmentation.flip}
    values |= {"crop_scale": chosen.augmentation.crop_scale}
    if given["optimizer"] != chosen.settings.optimizer:
        for key in ("learning_rate", "epochs", "batch_size"):
            del values[key]
    source = click.get_current_context().get_parameter_source
    typed = {key for key in given if source(key) is not ParameterSource.DEFAULT}
    made = {**given, **{key: value for key, value in values.items() if key not in typed}}
    say(f"settings of {name} for {arch} and {method or 'cam'}; options given beside them win")
    return made


class _Images:
    """Opens the data set before the model is loaded, so that mistakes in it are told at once.

    Whether an image may have several classes is the model's to say, unless `--task` does. What
    reads only with several is therefore refused when the model is there.

    Args:
        data: as `data_options` passes it, with the folders that are written to.
        labels: "given" or "predicted".
        task: that of `--task`; None without it.

    Raises:
        DataError: there are mistakes whatever the task.
    """

    def __init__(self, data: dict[str, Any], labels: str, task: Task | None) -> None:
        self._data, self._labels = data, labels
        self._several = task == "multi-label"
        self._error: DataError | None = None
        try:
            self._dataset = _open(data, labels, task)
        except DataError as exc:
            if task is not None:
                raise
            self._error, self._several = exc, True
            try:
                self._dataset = _open(data, labels, "multi-label")
            except DataError:
                raise exc from None

    def of(self, task: Task | None) -> Dataset:
        """Returns the data set as a task reads it.

        Raises:
            DataError: images have several classes, and the task has one.
        """
        several = task == "multi-label"
        if self._error is not None and not several:
            raise self._error
        if several and not self._several and self._labels == "given":
            return _open(self._data, self._labels, task)
        return self._dataset


def _open(data: dict[str, Any], labels: str, task: Task | None) -> Dataset:
    """Opens the data set: with the classes of a task, or any images where they are predicted."""
    from sigcam.data import labelled, open_images

    if labels == "given":
        return labelled(open_named(data, multi_label=task == "multi-label"))
    say(f"reading and checking {data['path']}; its classes, if any, aren't used")
    check_apart(data)
    return told(open_images(**data))


def report(result: TrainResult, dataset: Dataset, labels: str) -> None:
    """Says how the run ended, and which images turned out to be unreadable."""
    from sigcam.data import left_out, unread

    last = result.history[-1]
    name = "top-1" if labels == "given" else "agreement"
    if last.top1 is None:
        name = "mean average precision"
    own, held_out = last.accuracy
    held = "" if held_out is None else f", held-out {name} {held_out:.3f}"
    whose = "of the branch" if labels == "given" else "with the classifier"
    say(f"loss {last.loss:.4f}, {name} {whose} {own:.3f}{held}; {result.counts}")
    failed = [unread(dataset.samples[index], why) for index, why in result.failed.items()]
    for line in left_out(failed):
        say(line)
