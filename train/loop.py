"""Trains a head on a frozen backbone, from images to the trained branch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name; features are never F here)

from sigcam.classifier.dual_branch import DualBranch, tensors_sha256
from sigcam.classifier.head import Head
from sigcam.core.errors import DataError, UsageError
from sigcam.core.files import check_writable
from sigcam.data import Dataset
from sigcam.train.accuracy import accuracy_of
from sigcam.train.adam import fit_adam
from sigcam.train.checkpoint import CHECKPOINT, METRICS, State
from sigcam.train.distributed import join_world
from sigcam.train.fit import Fit, Loss
from sigcam.train.lbfgs import fit_lbfgs
from sigcam.train.loss import default_positive_weight, evidence_loss, one_logit_loss
from sigcam.train.predicted import with_predictions
from sigcam.train.samples import SampleSet, SampleSource, targets_of
from sigcam.train.settings import (
    EpochCallback,
    Reading,
    TrainResult,
    TrainSettings,
    default_weight_decay,
)
from sigcam.train.views import HeadName, TrainingViews, head_of

__all__ = ["fit_sigmoid_head", "fit_softmax_head"]


def fit_sigmoid_head(
    dual: DualBranch,
    views: TrainingViews,
    settings: TrainSettings | None = None,
    *,
    reading: Reading | None = None,
    class_names: Sequence[str] = (),
    run_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: EpochCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains the sigmoid branch in place; nothing else of `dual` changes.

    Under torchrun every process calls this with the same arguments; the result is the
    same in all of them. Ctrl-C lets the step in work finish, saves, and raises.

    Args:
        dual: is moved to the device of the settings and stays there.
        views: the images, each with a class unless labels are predicted, and how they are
            prepared and cropped.
        settings: optimiser and its numbers; `TrainSettings()` when None. With `init` "paper"
            the branch's parameters are drawn anew first.
        reading: threads, cache folder, strictness; `Reading()` when None.
        class_names: the model's C names, to match the data's by; empty if unknown.
        run_dir: gets checkpoint.pt and metrics.csv, replacing those of an earlier run;
            None writes neither.
        resume: whether to go on from the checkpoint in `run_dir`. On the CPU the result
            is that of an uninterrupted run, bit for bit. More epochs than before may be
            asked for where the schedule is constant.
        progress: whether progress bars are shown on standard error.
        on_epoch: called with the metrics after each epoch is saved, in every process.
        say: is told, in words, what computes features that are kept; None tells nobody.

    Returns:
        Metrics of every epoch, and what was trained on.

    Raises:
        UsageError: a preprocessing of another size than `dual`'s; L-BFGS for a head that isn't
            linear or under torchrun; `resume` without `run_dir`.
        DataError: images or classes that can't be used; one class that is predicted for all.
        ModelError: weights or features that aren't finite.
        TrainingError: a loss that isn't finite; a checkpoint that is missing or of
            another run.
        StorageError: cache or run folder can't be written.
        BackendUnavailableError: CUDA was asked for and isn't there.
        KeyboardInterrupt: Ctrl-C; the checkpoint is saved.
    """
    run = _Run(run_dir, resume, progress, on_epoch, say or _silent)
    return _train(dual, "sigmoid", views, settings, reading, class_names, run)


def fit_softmax_head(
    dual: DualBranch,
    views: TrainingViews,
    settings: TrainSettings | None = None,
    *,
    reading: Reading | None = None,
    class_names: Sequence[str] = (),
    run_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: EpochCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Trains the softmax head in place by cross-entropy, and freezes it again.

    For a multi-label or binary task that is the binary cross-entropy of each logit.

    It is for a model whose last layer `replace_classes` made anew; the paper takes the
    classifier as it is. The sigmoid branch doesn't change.

    Args:
        dual: as for `fit_sigmoid_head`.
        views: as for `fit_sigmoid_head`.
        settings: as for `fit_sigmoid_head`, without a positive weight and an `init`: these
            belong to the sigmoid branch. The labels are given ones.
        reading: as for `fit_sigmoid_head`.
        class_names: as for `fit_sigmoid_head`.
        run_dir: as for `fit_sigmoid_head`, and another folder than the branch's.
        resume: as for `fit_sigmoid_head`.
        progress: as for `fit_sigmoid_head`.
        on_epoch: as for `fit_sigmoid_head`.
        say: as for `fit_sigmoid_head`.

    Returns:
        As `fit_sigmoid_head`; its `positive_weight` is None.

    Raises:
        UsageError: a positive weight, an `init`, or predicted labels; and what
            `fit_sigmoid_head` raises.
    """
    _check_softmax(settings or TrainSettings())
    run = _Run(run_dir, resume, progress, on_epoch, say or _silent)
    return _train(dual, "softmax", views, settings, reading, class_names, run)


def _check_softmax(settings: TrainSettings) -> None:
    if settings.positive_weight is not None or settings.init not in (None, "default"):
        what = "init" if settings.positive_weight is None else "positive_weight"
        raise UsageError(f"{what} belongs to the sigmoid branch, not to the classifier")
    if settings.labels == "predicted":
        raise UsageError(
            "a new softmax head can't be trained on its own predictions; give labels, or a "
            "classifier that is trained"
        )


@dataclass(frozen=True)
class _Run:
    """Where a run is kept and what it shows; the fields are arguments of `fit_sigmoid_head`."""

    folder: Path | None
    resume: bool
    progress: bool
    on_epoch: EpochCallback | None
    say: Callable[[str], None]


def _silent(text: str) -> None:
    del text


def _train(
    dual: DualBranch,
    head: HeadName,
    views: TrainingViews,
    settings: TrainSettings | None,
    reading: Reading | None,
    class_names: Sequence[str],
    run: _Run,
) -> TrainResult:
    """Trains one of the two heads; see `fit_sigmoid_head`."""
    settings = _filled_in(settings or TrainSettings(), dual, head)
    reading = reading or Reading()
    _check_call(dual, views, run)
    _check_features(settings, reading)
    matched = _with_classes(views, settings, dual, class_names)
    dual.check_finite(sigmoid=False)
    with join_world(settings.device) as world:
        if run.folder is not None and world.is_main:
            check_writable(run.folder / CHECKPOINT)
            check_writable(run.folder / METRICS)
        dual.to(world.device)
        chosen = head_of(dual, head)
        samples = SampleSource(
            dual=dual,
            views=matched,
            settings=settings,
            reading=reading,
            world=world,
            head=head,
            progress=run.progress,
            say=run.say,
        ).make()
        if settings.labels == "predicted":
            samples = with_predictions(samples, dual, world, settings.temperature, class_names)
        start = _begin(chosen, dual, settings)
        weight = _positive_weight(settings, samples, matched.dataset, dual, head)
        fit = Fit(
            classifier=chosen.classifier,
            loss=_loss(dual, head, weight),
            train=samples.train,
            val=samples.val,
            settings=settings,
            world=world,
            run=_identity(settings, samples, matched.dataset, dual, head),
            folder=run.folder,
            progress=run.progress,
            on_epoch=run.on_epoch,
            state=State(),
            accuracy=accuracy_of(dual.task, dual.num_classes),
            start=start,
        )
        with _trainable(chosen):
            norm = _fit(fit, chosen, run.resume)
        # What the processes together found unreadable while training on the fly.
        parts = [samples.train] if samples.val is None else [samples.train, samples.val]
        unread = [world.merged(part.failed) for part in parts]
    return TrainResult(
        history=tuple(fit.state.history),
        images=samples.images - len(unread[0]),
        views=samples.views,
        positive_weight=weight,
        weight_decay=settings.decay,
        gradient_norm=norm,
        failed={**samples.failed, **{i: why for part in unread for i, why in part.items()}},
        cache_folder=samples.folder,
    )


def _filled_in(settings: TrainSettings, dual: DualBranch, head: HeadName) -> TrainSettings:
    """Returns the settings with the init and the weight decay that go with the head."""
    settings = replace(settings, init=settings.first)  # a softmax head has given labels
    if settings.weight_decay is not None:
        return settings
    logits = 1 if dual.task == "binary" else dual.num_classes
    shapes = [one.shape for one in head_of(dual, head).classifier.parameters()]
    own = head == "sigmoid" and all(shape[:1] == (logits,) for shape in shapes)
    return replace(settings, weight_decay=default_weight_decay(logits, own))


def _begin(head: Head, dual: DualBranch, settings: TrainSettings) -> dict[str, torch.Tensor] | None:
    """Sets the first parameters; returns those that the weight decay pulls to, if not to 0."""
    if settings.init == "softmax":
        head.start_from(dual.softmax_head, centred=dual.task == "single-label")
        return {n: p.detach().clone() for n, p in head.classifier.named_parameters()}
    if settings.init == "paper":
        head.draw(settings.seed, settings.init)
    return None


def _with_classes(
    views: TrainingViews, settings: TrainSettings, dual: DualBranch, class_names: Sequence[str]
) -> TrainingViews:
    """Returns the views with the model's class ids; as they are if labels are predicted."""
    if settings.labels == "given":
        return views.matched(dual.num_classes, class_names)
    if not len(views):
        raise DataError(f"the data set {views.dataset.name!r} ({views.dataset.path}) has no images")
    return views


def _check_call(dual: DualBranch, views: TrainingViews, run: _Run) -> None:
    size = [views.preprocessing.height, views.preprocessing.width]
    if size != list(dual.input_size):
        raise UsageError(
            f"the preprocessing must have the input size {list(dual.input_size)} that the model "
            f"was split at, got {size}"
        )
    if views.preprocessing.channels != dual.channels:
        raise UsageError(
            f"the preprocessing must have the {dual.channels} channels that the model was split "
            f"for, got a mean and std of {views.preprocessing.channels}"
        )
    if run.resume and run.folder is None:
        raise UsageError("resume needs run_dir, the folder with the checkpoint")


def _check_features(settings: TrainSettings, reading: Reading) -> None:
    if not settings.cached and reading.features_by == "onnxruntime":
        raise UsageError(
            "views that are new in every epoch go through PyTorch, and features by ONNX Runtime "
            "were asked for; keep features (cached=True, --cached), or leave features_by out"
        )


def _fit(fit: Fit, head: Head, resume: bool) -> float | None:
    if fit.settings.optimizer == "lbfgs":
        return fit_lbfgs(fit, head.neck_shape, resume)
    fit_adam(fit, resume)
    return None


def _positive_weight(
    settings: TrainSettings, samples: SampleSet, dataset: Dataset, dual: DualBranch, head: HeadName
) -> float | None:
    """Returns the weight of the loss's positive term; None for the classifier's own head."""
    if head == "softmax":
        return None
    if settings.positive_weight is not None:
        return settings.positive_weight
    if dual.task == "binary":
        return 1.0
    if dual.task == "single-label":
        return default_positive_weight(dual.num_classes)
    mean = samples.mean_labels
    if settings.labels == "given":
        mean = sum(map(len, dataset.label_sets)) / len(dataset)
    if mean is None:
        raise UsageError(
            "how many classes an image has in the mean is only known of cached features, where "
            "labels are predicted; give a positive weight, or use cached features"
        )
    return default_positive_weight(dual.num_classes, mean)


def _loss(dual: DualBranch, head: HeadName, weight: float | None) -> Loss:
    """Returns the loss of a head; the classifier's own has no weight for positives."""
    if dual.task == "binary":
        return partial(one_logit_loss, positive_weight=weight or 1.0)
    if head == "sigmoid" or dual.task == "multi-label":
        return partial(evidence_loss, positive_weight=weight or 1.0)
    return F.cross_entropy


@contextmanager
def _trainable(head: Head) -> Iterator[None]:
    """Lets the head's classifier take gradients, and restores what was frozen."""
    before = {name: p.requires_grad for name, p in head.classifier.named_parameters()}
    head.classifier.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in head.classifier.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def _identity(
    settings: TrainSettings,
    samples: SampleSet,
    dataset: Dataset,
    dual: DualBranch,
    head: HeadName,
) -> dict[str, Any]:
    """Returns what a resumed run must agree on, as plain JSON values."""
    asked = {k: v for k, v in asdict(settings).items() if k != "device"}
    if settings.schedule == "constant":
        del asked["epochs"]
    is_predicted, is_tuned = settings.labels == "predicted", settings.init == "softmax"
    softmax = ""
    if is_predicted or is_tuned:
        softmax = tensors_sha256(dual.softmax_head.named_tensors())
    labels = softmax
    if not is_predicted:
        targets = targets_of(dataset, dual)
        labels = hashlib.sha256(targets.tobytes()).hexdigest()
    found = {**asked, "head": head, "features": samples.key, "labels_sha256": labels}
    return {**found, "start_sha256": softmax} if is_tuned else found
