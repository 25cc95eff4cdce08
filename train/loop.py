"""Training a head on a frozen backbone, from images to the trained branch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812 (its usual name; features are never F here)

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.core.errors import UsageError
from sigcam.core.files import check_writable
from sigcam.core.spec import Preprocessing
from sigcam.train.adam import fit_adam
from sigcam.train.augment import Augmentation
from sigcam.train.checkpoint import CHECKPOINT, State
from sigcam.train.data import ImageList, match_classes
from sigcam.train.distributed import World, join_world
from sigcam.train.fit import Fit, Loss
from sigcam.train.lbfgs import fit_lbfgs
from sigcam.train.loss import default_positive_weight, evidence_loss
from sigcam.train.samples import LiveSamples, Samples, SampleSet, SampleSource
from sigcam.train.settings import (
    EpochCallback,
    Reading,
    TrainResult,
    TrainSettings,
    default_weight_decay,
)
from sigcam.train.views import HeadName, head_of

__all__ = ["Reading", "TrainSettings", "train_branch"]


def train_branch(
    dual: DualBranch,
    data: ImageList,
    settings: TrainSettings | None = None,
    *,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None = None,
    reading: Reading | None = None,
    class_names: Sequence[str] = (),
    run_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    head: HeadName = "sigmoid",
    on_epoch: EpochCallback | None = None,
) -> TrainResult:
    """Trains the sigmoid branch in place; nothing else of `dual` changes.

    Under torchrun every process calls this with the same arguments; the result is the
    same in all of them. Ctrl-C lets the step in work finish, saves, and raises.

    Args:
        dual: is moved to the device of the settings and stays there.
        data: the training set.
        settings: optimiser and its numbers; `TrainSettings()` when None.
        preprocessing: of the network's input, as it will be deployed.
        augmentation: which views; `Augmentation()` when None. Training on the fly draws
            one random view per image and epoch and doesn't use `views`.
        reading: threads, cache folder, strictness; `Reading()` when None.
        class_names: the model's C names, to match the data's by; empty if unknown.
        run_dir: gets checkpoint.pt and metrics.csv, replacing those of an earlier run;
            None writes neither.
        resume: whether to go on from the checkpoint in `run_dir`. On the CPU the result
            is that of an uninterrupted run, bit for bit. More epochs than before may be
            asked for where the schedule is constant.
        progress: whether progress bars are shown on standard error.
        head: "softmax" trains the softmax head by cross-entropy instead (a linear probe
            after `replace_classes`; not part of the paper).
        on_epoch: called with the metrics after each epoch is saved, in every process.

    Raises:
        UsageError: a preprocessing of another size than `dual`'s; L-BFGS for a head that isn't
            linear or under torchrun; `resume` without `run_dir`.
        DataError: images or classes that can't be used.
        ModelError: weights or features that aren't finite.
        TrainingError: a loss that isn't finite; a checkpoint that is missing or of
            another run.
        StorageError: cache or run folder can't be written.
        BackendUnavailableError: CUDA was asked for and isn't there.
        KeyboardInterrupt: Ctrl-C; the checkpoint is saved.
    """
    settings = settings or TrainSettings()
    if (preprocessing.height, preprocessing.width) != dual.input_size:
        raise UsageError(
            f"the preprocessing must have the input size {list(dual.input_size)} that the model was "
            f"split at, got {[preprocessing.height, preprocessing.width]}"
        )
    if resume and run_dir is None:
        raise UsageError("resume needs run_dir, the folder with the checkpoint")
    matched = match_classes(data, dual.num_classes, class_names)
    dual.check_finite(sigmoid=False)
    with join_world(settings.device) as world:
        if run_dir is not None and world.is_main:
            check_writable(run_dir / CHECKPOINT)
        dual.to(world.device)
        chosen = head_of(dual, head)
        decay = settings.weight_decay
        if decay is None:
            shapes = [parameter.shape for parameter in chosen.classifier.parameters()]
            own = head == "sigmoid" and all(one[:1] == (dual.num_classes,) for one in shapes)
            decay = default_weight_decay(dual.num_classes, own)
        settings = replace(settings, weight_decay=decay)
        samples = SampleSource(
            dual=dual,
            data=matched,
            settings=settings,
            preprocessing=preprocessing,
            augmentation=augmentation or Augmentation(),
            reading=reading or Reading(),
            world=world,
            head=head,
            progress=progress,
        ).make()
        fit = Fit(
            classifier=chosen.classifier,
            loss=_loss(settings, head),
            train=samples.train,
            val=samples.val,
            settings=settings,
            world=world,
            run=_identity(settings, samples, matched, head),
            folder=run_dir,
            progress=progress,
            on_epoch=on_epoch,
            state=State(),
        )
        with _trainable(chosen):
            norm = _fit(fit, chosen, resume)
        unread = [_unread(part, world) for part in (samples.train, samples.val)]
    weight = settings.positive_weight or default_positive_weight(dual.num_classes)
    return TrainResult(
        history=tuple(fit.state.history),
        images=samples.images - len(unread[0]),
        views=samples.views,
        positive_weight=weight if head == "sigmoid" else None,
        weight_decay=decay,
        gradient_norm=norm,
        failed={**samples.failed, **unread[0], **unread[1]},
        cache_folder=samples.folder,
    )


def _fit(fit: Fit, head: Head, resume: bool) -> float | None:
    if fit.settings.optimizer == "lbfgs":
        return fit_lbfgs(fit, head.neck_shape, resume)
    fit_adam(fit, resume)
    return None


def _unread(samples: Samples | None, world: World) -> dict[int, str]:
    """What the processes together found unreadable while training on the fly."""
    return world.merged(samples.failed if isinstance(samples, LiveSamples) else {})


def _loss(settings: TrainSettings, head: HeadName) -> Loss:
    if head == "softmax":
        return F.cross_entropy
    return partial(evidence_loss, positive_weight=settings.positive_weight)


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
    settings: TrainSettings, samples: SampleSet, data: ImageList, head: HeadName
) -> dict[str, Any]:
    """What a resumed run must agree on, as plain JSON values."""
    asked = {k: v for k, v in asdict(settings).items() if k != "device"}
    if settings.schedule == "constant":
        del asked["epochs"]
    labels = hashlib.sha256(np.array(data.class_ids, np.int64).tobytes()).hexdigest()
    return {**asked, "head": head, "features": samples.key, "labels": labels}


def train_classifier(
    dual: DualBranch, data: ImageList, settings: TrainSettings | None = None, **options: Any
) -> TrainResult:
    """Trains the softmax head of a model from `replace_classes`, by cross-entropy.

    The head is frozen again afterwards. A positive weight in the settings is refused: it
    belongs to the sigmoid branch's loss.

    Args:
        dual: whose softmax head is trained, in place.
        data: see `train_branch`.
        settings: see `train_branch`.
        **options: the other arguments of `train_branch`, without `head`.

    Raises:
        UsageError: a positive weight; and what `train_branch` raises.
    """
    settings = settings or TrainSettings()
    if settings.positive_weight is not None:
        raise UsageError("positive_weight belongs to the sigmoid branch, not to the classifier")
    return train_branch(dual, data, settings, head="softmax", **options)
