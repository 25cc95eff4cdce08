"""Training the sigmoid branch of a classifier on a data set, from start to a branch file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sigcam.classifier.branch_file import BranchInfo, BranchType, save_branch
from sigcam.classifier.build import BuiltClassifier
from sigcam.classifier.fresh import Init
from sigcam.core.annotations import checked
from sigcam.core.cpus import usable_cpus
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing, Task
from sigcam.data import Dataset, labelled
from sigcam.train.augment import Augmentation
from sigcam.train.checkpoint import CHECKPOINT
from sigcam.train.loop import fit_sigmoid_head, fit_softmax_head
from sigcam.train.settings import Reading, TrainResult, TrainSettings
from sigcam.train.views import TrainingViews


@dataclass(frozen=True, eq=False)
class TrainedBranch:
    """A classifier whose sigmoid branch was trained, and how that went.

    Attributes:
        classifier: the model, ready for `export_artifact`; its `info` says what it was trained
            on.
        info: what the branch file says about the branch.
        result: losses and accuracies of each epoch, and the images that couldn't be read.
    """

    classifier: BuiltClassifier
    info: BranchInfo
    result: TrainResult

    @checked
    def save(self, path: str | Path, dtype: BranchType = "float32") -> BranchInfo:
        """Writes the branch file, whole or not at all.

        Args:
            path: the file, usually ending in ".safetensors".
            dtype: the type of the stored values; "float16" for a small file to ship.

        Returns:
            The info as written, with hash and versions.

        Raises:
            ModelError: a value isn't finite, or not in float16.
            StorageError: the file can't be written.
        """
        return save_branch(path, self.classifier.dual, self.info, dtype)


@checked
def train_branch(
    classifier: BuiltClassifier,
    dataset: Dataset,
    settings: TrainSettings | None = None,
    *,
    augmentation: Augmentation | None = None,
    preprocessing: Preprocessing | None = None,
    reading: Reading | None = None,
    trained_on: str | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> TrainedBranch:
    """Trains the sigmoid branch of a classifier; nothing else of a trained classifier changes.

    A classifier whose last layer was re-made (`build_classifier(..., new_classes=C)`) gets that
    layer trained first, by cross-entropy on the same features.

    Args:
        classifier: from `build_classifier`; its modules are trained in place.
        dataset: images with one class each, or for a multi-label model any number
            (`open_dataset(..., multi_label=True)`). Classes are matched with the model's by id or
            by name. With `settings.labels` "predicted" they need no classes (`open_images`), and
            those they have are ignored.
        settings: how to train; `TrainSettings()` when None, and the paper's from `preset`.
        augmentation: which views of each image; twelve random crops and flips when None.
        preprocessing: how images become the input, as it will be deployed; the classifier's own
            when None.
        reading: how images are read and where features are kept.
        trained_on: what the data is, in words for the branch file; its name and counts when
            None.
        run_dir: folder of checkpoints and of `metrics.csv`; without one nothing is kept.
        resume: goes on from the checkpoint in `run_dir`.
        progress: shows a bar on standard error.
        say: is told each stage in words; None tells nobody.

    Returns:
        The trained classifier with the history of its training.

    Raises:
        UsageError: settings that contradict each other or the model: predicted labels and a
            last layer that was re-made, an `init` and a branch that was trained before.
        DataError: images without a class, or classes that the model doesn't have; one class
            that is predicted for all images.
        TrainingError: the loss isn't finite, or a checkpoint of another run.
        StorageError: a folder can't be written.

    Example:
        classifier = sigcam.build_classifier("efficientnet_lite0", weights="DEFAULT")
        trained = sigcam.train_branch(classifier, sigcam.open_dataset("images/"))
        trained.save("branch.safetensors")
    """
    say = say or _silent
    settings = settings or TrainSettings()
    augmentation = augmentation or Augmentation(seed=settings.seed)
    preprocessing = replace(
        preprocessing or classifier.preprocessing, channel_order=classifier.dual.channel_order
    )
    _check(classifier, settings)
    _limit_torch()
    if settings.init is None:  # a branch that is there goes on
        first: Init = "default" if classifier.has_sigmoid else settings.first
        settings = replace(settings, init=first)
    predicted = settings.labels == "predicted"
    dataset = dataset if predicted else labelled(dataset)
    folder = None if run_dir is None else Path(run_dir)
    views = TrainingViews(dataset, preprocessing, augmentation)
    dual, names = classifier.dual, classifier.class_names
    if classifier.replaced_classes and not classifier.has_sigmoid:
        say("training the new softmax head")
        fit_softmax_head(
            dual,
            views,
            replace(settings, positive_weight=None, init=None),
            reading=reading,
            class_names=names,
            run_dir=None if folder is None else folder / "softmax",
            resume=resume,
            progress=progress,
            say=say,
        )
        # Stopped in the first stage, a run has no checkpoint of the second yet.
        resume = resume and folder is not None and (folder / CHECKPOINT).exists()
    if not classifier.has_sigmoid:
        first_values = "as the softmax branch's" if settings.init == "softmax" else "fresh"
        say(f"{dual.branch_note}; they begin {first_values}")
    say("training the sigmoid branch (Ctrl-C keeps a checkpoint, --resume goes on from it)")
    result = fit_sigmoid_head(
        dual,
        views,
        settings,
        reading=reading,
        class_names=names,
        run_dir=folder,
        resume=resume,
        progress=progress,
        say=say,
    )
    info = BranchInfo(
        architecture=classifier.architecture,
        branch_layer=dual.branch_layer,
        num_classes=dual.num_classes,
        preprocessing=preprocessing,
        trained_on=trained_on or _words(dataset, settings, result, dual.task),
        positive_weight=result.positive_weight,
        weights=classifier.weights,
        loaded_classes=classifier.loaded_classes,
        class_names=names or (() if predicted else _names(dataset, dual.num_classes)),
        replaced_classes=classifier.replaced_classes,
        task=dual.task,
        settings={
            **asdict(settings),
            "weight_decay": result.weight_decay,
            "views": augmentation.views,
            "crop_scale": list(augmentation.crop_scale),
            "flip": augmentation.flip,
        },
    )
    trained = replace(
        classifier,
        preprocessing=preprocessing,
        class_names=info.class_names,
        info=info,
        checkpoint=None,
    )
    return TrainedBranch(trained, info, result)


def _check(classifier: BuiltClassifier, settings: TrainSettings) -> None:
    """Refuses settings that contradict the classifier, and one without a head to train."""
    dual = classifier.dual
    if not dual.is_trainable:
        raise UsageError(
            f"nothing with parameters follows the layers "
            f"{' and '.join(target.layer for target in dual.targets)} alone, so there is no "
            f"sigmoid branch to train; export with the branch softmax or centred, which need "
            f"no training"
        )
    untrained = classifier.replaced_classes and not classifier.has_sigmoid
    if settings.labels == "predicted" and untrained:
        raise UsageError(
            "the last layer was re-made for new classes and has to be trained, which needs "
            "labels; give labels, or a classifier that is trained"
        )
    if settings.init not in (None, "default") and classifier.has_sigmoid:
        raise UsageError(
            f"the init {settings.init!r} begins with other parameters, and this sigmoid branch was "
            f"trained before: {classifier.trained_on}. Take the init 'default' to go on from it, "
            "or weights without a branch to start anew"
        )


def _limit_torch() -> None:
    """Keeps torch within the quota of this process; it knows affinity and OMP_NUM_THREADS."""
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())


def _words(dataset: Dataset, settings: TrainSettings, result: TrainResult, task: Task) -> str:
    labels = ", labels predicted by the classifier" if settings.labels == "predicted" else ""
    if settings.temperature is not None:
        squashing = "softmax" if task == "single-label" else "sigmoid"
        labels += f" ({squashing} at temperature {settings.temperature:g})"
    return f"{dataset.name}: {result.counts}{labels}"


def _silent(text: str) -> None:
    del text


def _names(dataset: Dataset, num_classes: int) -> tuple[str, ...]:
    names = dataset.classes or ()
    return names if len(names) == num_classes else ()
