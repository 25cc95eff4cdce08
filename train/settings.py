"""Holds what a training run is asked to do, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sigcam.classifier.fresh import Init
from sigcam.core.annotations import check_fields
from sigcam.core.errors import UsageError
from sigcam.train.feature_cache import CacheType
from sigcam.train.features_by import FeaturesBy

Optimizer = Literal["adam", "lbfgs"]
Schedule = Literal["constant", "cosine"]
Labels = Literal["given", "predicted"]

_DEFAULTS: dict[str, tuple[float, int, int]] = {
    # learning rate, epochs, batch size
    "adam": (0.003, 3, 32),
    "lbfgs": (1.0, 20, 4096),
}


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained.

    "Beyond Softmax" trains with Adam in batches of 32, at learning rates searched between 5e-5
    and 3e-2 for each network and method, for up to 10 epochs on ImageNet: `preset` gives those
    numbers. Its published code trains another way, by SGD with Nesterov momentum, 3 epochs, a
    step schedule and a weight decay of 5e-4, with batch norm on the statistics of the batch
    and all dropouts acting. The defaults for Adam here (0.003, 3 epochs, 32) are for networks
    that the paper doesn't have, and the weight decay is this project's own. On a small data
    set more epochs may be needed.

    Attributes:
        optimizer: "adam", or "lbfgs": the whole set per step with a strong Wolfe line
            search; for a classifier that is one linear layer, where the problem is convex.
            Dropout is off there, or the objective would change from step to step.
        learning_rate: None: 0.003 for Adam, 1 for L-BFGS (the line search scales it).
        weight_decay: factor d of the L2 term d/2 |theta|^2 added to the loss (with the init
            "softmax" d/2 |theta - start|^2), biases included, for either optimiser (not
            decoupled as in AdamW). None: see `default_weight_decay`.
        epochs: None: 3 for Adam, 20 for L-BFGS. One of L-BFGS is up to 10 iterations; it
            ends early when the gradient is all but zero.
        batch_size: samples per step over all processes; None: 32 for Adam. For L-BFGS the
            rows worked on at once (4096), which changes memory, not the result.
        positive_weight: of the loss; None: C - 1, for a multi-label task (C - m) / m with m the
            mean number of classes of an image, for a binary one 1.
        labels: what the targets are made of: "given", the classes of the data set; or
            "predicted", the classifier's own prediction for each view. Then the data need no
            classes, and those that they have are ignored. The target is the most probable
            class, or with a `temperature` a probability of each class.
        temperature: T > 0, for predicted labels: the targets are softmax(logits / T), of a
            multi-label or binary task sigmoid(logits / T). None: the most probable class, of a
            multi-label task every class of probability 0.5 or more.
        init: how the parameters of the sigmoid branch begin: "default", as the model was built
            with; "paper", drawn anew from `seed` as the paper says (`Head.draw`); or "softmax",
            those of the softmax branch with the mean over the classes taken off the last layer,
            where they were trained for a softmax (`Head.start_from`). The weight decay then pulls
            to these and not to 0, so that classes that no image shows stay as they are (the L2-SP
            of Li et al., "Explicit Inductive Bias for Transfer Learning", ICML 2018). None:
            "softmax" for predicted labels, where it makes far better maps (docs/results.md),
            "default" for given ones.
            A resumed run takes the parameters of its checkpoint.
        schedule: "constant", or "cosine": the learning rate falls to 0 over the run.
        seed: of order, dropout, validation split and the parameters of `init` "paper".
        cached: whether features of a fixed number of views are computed once. If not,
            every epoch crops and flips anew and runs the backbone.
        cache_dtype: of the features on disk, "float16" or "float32".
        val_fraction: share of the images held out for validation, 0 <= share < 1.
        device: "auto", "cpu", "cuda" or "cuda:<n>".

    Example:
        >>> TrainSettings().steps
        (0.003, 3, 32)
        >>> TrainSettings(optimizer="lbfgs", epochs=5).steps
        (1.0, 5, 4096)
    """

    optimizer: Optimizer = "adam"
    learning_rate: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    positive_weight: float | None = None
    labels: Labels = "given"
    temperature: float | None = None
    init: Init | None = None
    schedule: Schedule = "constant"
    seed: int = 0
    cached: bool = True
    cache_dtype: CacheType = "float16"
    val_fraction: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        rate, epochs, batch = _DEFAULTS[self.optimizer]
        for name, value in (("learning_rate", rate), ("epochs", epochs), ("batch_size", batch)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        self._check_numbers()
        if self.optimizer == "lbfgs" and self.schedule != "constant":
            raise UsageError("L-BFGS finds its own step sizes; use the schedule 'constant'")
        if self.optimizer == "lbfgs" and not self.cached:
            raise UsageError("L-BFGS needs the same samples at every step; use cached features")

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "positive_weight", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be finite and above 0, got {value!r}")
        if self.temperature is not None and self.labels == "given":
            raise UsageError(
                f"a temperature ({self.temperature:g}) softens the classifier's predictions, and "
                "the labels are those given; ask for labels 'predicted', or leave it out"
            )
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise UsageError(
                f"weight_decay must be finite and at least 0, got {self.weight_decay!r}"
            )
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"val_fraction must be in [0, 1), got {self.val_fraction!r}")
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed!r}")

    @property
    def steps(self) -> tuple[float, int, int]:
        """Returns learning rate, epochs and batch size with the defaults filled in."""
        if self.learning_rate is None or self.epochs is None or self.batch_size is None:
            raise UsageError("settings must be made by TrainSettings(...)")
        return self.learning_rate, self.epochs, self.batch_size

    @property
    def first(self) -> Init:
        """Returns how the parameters of a sigmoid branch begin, with the default filled in."""
        return self.init or ("softmax" if self.labels == "predicted" else "default")

    @property
    def decay(self) -> float:
        """Returns the weight decay, which `fit_sigmoid_head` fills in."""
        if self.weight_decay is None:
            raise UsageError("the weight decay isn't filled in; give one")
        return self.weight_decay


def default_weight_decay(num_classes: int, own: bool) -> float:
    """Returns 0.15 / C for a sigmoid branch of one linear layer, and 5e-4 otherwise.

    5e-4 is that of the paper's published code, after Choe et al. (2020).

    The loss is a mean over the C classes, so that each class's own weights move it by 1 / C:
    the same d is C times as strong for them, and 0.15 / C is equally strong for any C. It
    matters for the heatmap (docs/results.md): with 5e-4 for three classes boxes and PxAP were
    worse in every fold. In deeper heads the classes share weights, which the loss moves as
    much for any C; and cross-entropy isn't divided by C.

    Args:
        num_classes: C.
        own: whether what is trained is a sigmoid branch whose every parameter belongs to one
            class, as in one linear layer.

    Example:
        >>> default_weight_decay(4, own=True), default_weight_decay(4, own=False)
        (0.0375, 0.0005)
    """
    return 0.15 / num_classes if own else 5e-4


@dataclass(frozen=True)
class Reading:
    """How images are read and where features are kept.

    Attributes:
        cache_dir: folder of all feature caches; the user's cache folder when None.
        workers: decoding threads; the cores, at most 8, when None.
        strict: whether an unreadable image is an error. If not, it is left out and
            listed in the result.
        features_by: what computes features that are kept: "torch"; "onnxruntime", on the CPU; or
            "auto", the faster one. Both compute the same to 1e-5 of the largest feature, which
            is tried before. Views that are new in every epoch go through PyTorch.
    """

    cache_dir: Path | None = None
    workers: int | None = None
    strict: bool = False
    features_by: FeaturesBy = "auto"


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.csv.

    Attributes:
        epoch: 1, 2, ...
        loss: mean over the epoch's samples, as they were met, without weight decay.
        top1: share of the samples whose class has the head's largest logit. With predicted
            labels the class is the classifier's, so this is the share of the samples on which
            the branch agrees with it. None for a multi-label task.
        seconds: that the epoch took, validation included.
        samples_per_s: training samples over `seconds`.
        val_loss, val_top1: of the plain view of the held-out images after the epoch;
            None without a validation split.
        mean_average_precision: of a multi-label task, in place of top-1 (`MeanAveragePrecision`);
            None for the others.
        val_mean_average_precision: the same of the held-out images.
    """

    epoch: int
    loss: float
    top1: float | None
    seconds: float
    samples_per_s: float
    val_loss: float | None = None
    val_top1: float | None = None
    mean_average_precision: float | None = None
    val_mean_average_precision: float | None = None

    @property
    def accuracy(self) -> tuple[float | None, float | None]:
        """Returns top-1, or the mean average precision, of the samples and the held-out images."""
        if self.mean_average_precision is None:
            return self.top1, self.val_top1
        return self.mean_average_precision, self.val_mean_average_precision


@dataclass(frozen=True)
class TrainResult:
    """What a run gave; the trained tensors are in the `DualBranch` itself.

    Attributes:
        history: one entry per epoch, those before a resumption included.
        images: how many were trained on, validation and unreadable ones not counted.
        views: per image; 0 when every epoch drew its own.
        positive_weight: the one used; None for the softmax head.
        weight_decay: the one used.
        gradient_norm: largest absolute entry of the objective's gradient at the end;
            L-BFGS only.
        failed: index of an unreadable image to the reason.
        cache_folder: of the features; None without a cache.

    Example:
        >>> result = TrainResult((), 120, 12, 2.0, 0.05, None, {}, None)
        >>> result.counts
        '120 images, 12 views of each'
    """

    history: tuple[EpochMetrics, ...]
    images: int
    views: int
    positive_weight: float | None
    weight_decay: float
    gradient_norm: float | None
    failed: Mapping[int, str]
    cache_folder: Path | None

    @property
    def counts(self) -> str:
        """Tells the number of images and of views, in words."""
        views = f"{self.views} views of each" if self.views else "new views every epoch"
        return f"{self.images} images, {views}"


EpochCallback = Callable[[EpochMetrics], Any]
