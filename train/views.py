"""Makes what a head is trained on from image files: decode, augment, backbone, neck.

Images are decoded and cut in worker threads (OpenCV frees the interpreter's lock)
while the backbone works on those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.classifier.rewrite import fold_batch_norms
from sigcam.core.cpus import usable_cpus
from sigcam.core.errors import ImageError, ModelError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.data import Dataset, labelled, match_classes
from sigcam.images.decode import read_image
from sigcam.images.pixels import pixel_format
from sigcam.images.preprocess import Original, read_input
from sigcam.train.augment import Augmentation, Pixels

HeadName = Literal["sigmoid", "softmax"]

BATCH = 64
"""Views that go through the backbone at once."""


def head_of(dual: DualBranch, name: HeadName) -> Head:
    """Returns the head of that name."""
    return dual.sigmoid_head if name == "sigmoid" else dual.softmax_head


def default_workers() -> int:
    """Returns how many threads decode: the usable cores, at most 8 (the backbone needs the rest).

    Example:
        >>> 1 <= default_workers() <= 8
        True
    """
    return min(usable_cpus(), 8)


@dataclass(frozen=True, eq=False)
class TrainingViews:
    """The one source of what a head is trained on: views of a data set's images.

    Attributes:
        dataset: images as `open_dataset` gives them; with a class each, unless labels are
            predicted.
        preprocessing: of the network's input, as it will be deployed.
        augmentation: which views of each image. Training on the fly draws one random view per
            image and epoch and doesn't use `augmentation.views`.
    """

    dataset: Dataset
    preprocessing: Preprocessing
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __len__(self) -> int:
        return len(self.dataset)

    def matched(self, num_classes: int, class_names: Sequence[str] = ()) -> TrainingViews:
        """Returns the same views with the class ids that a model uses (`match_classes`).

        Args:
            num_classes: C of the model.
            class_names: the model's C names; empty if unknown.

        Raises:
            DataError: images without a class; classes that the model doesn't have.
        """
        dataset = match_classes(labelled(self.dataset), num_classes, class_names)
        return replace(self, dataset=dataset)

    def describe(self) -> dict[str, Any]:
        """Returns what the pixels of all views depend on, ready for JSON."""
        preprocessing = asdict(self.preprocessing)
        del preprocessing["layout"]  # how pixels reach the exported graph; the values are the same
        return {
            "data": self.dataset.fingerprint(),
            "images": len(self),
            "preprocessing": preprocessing,
            "augmentation": asdict(self.augmentation),
        }

    def pixels(self, image: int, views: Sequence[int]) -> Pixels:
        """Decodes views of one image.

        The plain view is read as in use, a large JPEG smaller; crops are cut of the whole.

        Args:
            image: its index in the data set.
            views: their indices; see `Augmentation.view`.

        Returns:
            Raw pixels [V, height, width, n]: uint8, or float32 where the model takes no bytes.

        Raises:
            ImageError: the file can't be decoded, or has other channels or values.
        """
        file = self.dataset.samples[image].path
        plain = None
        if 0 in views:
            plain = read_input(file, self.preprocessing.raw)
        if plain is None:
            whole = Original(read_image(file, pixels=pixel_format(self.preprocessing)))
        else:
            whole = plain.original
        made = [
            self.augmentation.view(whole.image, self.preprocessing, image, view)
            if view or plain is None
            else plain.tensor
            for view in views
        ]
        return np.stack(made)


@dataclass(frozen=True)
class Job:
    """Views of one image that are wanted: its index and the views' indices."""

    image: int
    views: tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """What a job gave.

    Attributes:
        job: which views were wanted.
        pixels: [V, H, W, n]; None if the image can't be read.
        error: the reason why it can't be.
    """

    job: Job
    pixels: Pixels | None
    error: str = ""


class ViewReader:
    """Decodes jobs in threads, in order, a bounded number ahead. A context manager.

    Args:
        views: what jobs are of.
        workers: how many threads; `default_workers()` when None.

    Raises:
        UsageError: fewer than one thread.
    """

    def __init__(self, views: TrainingViews, workers: int | None = None) -> None:
        count = default_workers() if workers is None else workers
        if count < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        self._views = views
        self._ahead = 4 * count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="sigcam-decode")

    def __enter__(self) -> ViewReader:  # noqa: PYI034 (Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, jobs: Iterable[Job]) -> Iterator[Decoded]:
        """Yields the jobs' views in the order of the jobs."""
        waiting: deque[Future[Decoded]] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(self._decode, job))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _decode(self, job: Job) -> Decoded:
        try:
            return Decoded(job, self._views.pixels(job.image, job.views))
        except ImageError as exc:
            return Decoded(job, None, str(exc))


class FeatureRunner:
    """Runs prepared images through the frozen backbone and a head's neck.

    Args:
        dual: its backbone must be on `device`.
        preprocessing: whose mean and deviation pixels are normalised with.
        device: what it runs on.
        head: whose neck it is.
    """

    def __init__(
        self,
        dual: DualBranch,
        preprocessing: Preprocessing,
        device: torch.device,
        head: HeadName = "sigmoid",
    ) -> None:
        self.features = fold_batch_norms(dual.features)
        self.neck, self.device = head_of(dual, head).neck, device
        shape, scale = (1, -1, 1, 1), preprocessing.scale
        self._mean = torch.tensor(preprocessing.mean, device=device).reshape(shape) * scale
        self._scale = 1 / (torch.tensor(preprocessing.std, device=device).reshape(shape) * scale)
        self._format = self._memory_format(preprocessing)

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """Computes the neck's output.

        Args:
            pixels: raw, [B, H, W, n].

        Returns:
            float32 [B, ...] on the device; e.g. the pooled features [B, N].

        Raises:
            ModelError: a value isn't finite.
        """
        with torch.inference_mode():
            made = self._run(torch.from_numpy(pixels).to(self.device))
            if not bool(torch.isfinite(made).all()):
                raise ModelError(
                    "the network's features are not finite (NaN or infinite); look at its weights "
                    "and at mean and std of its input"
                )
        # A plain tensor: autograd refuses to save inference tensors for the backward pass.
        return made.clone()

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() - self._mean) * self._scale
        made: torch.Tensor = self.neck(self.features(images.contiguous(memory_format=self._format)))
        return made.float()

    def _memory_format(self, preprocessing: Preprocessing) -> torch.memory_format:
        """Chooses channels last where the network's graph takes it.

        A quarter less CPU time for EfficientNet-Lite0, the same values to rounding. A graph
        that reshapes with `view` (channel shuffles) refuses it; that is tried once.
        """
        self._format = torch.channels_last
        size = (preprocessing.height, preprocessing.width, preprocessing.channels)
        blank = torch.zeros(2, *size, dtype=torch.uint8)
        try:
            with torch.inference_mode():
                self._run(blank.to(self.device))
        except RuntimeError:
            return torch.contiguous_format
        return torch.channels_last


def grouped(decoded: Iterable[Decoded], views: int) -> Iterator[list[Decoded]]:
    """Collects decoded images until about `BATCH` views are together.

    Example:
        >>> decoded = [Decoded(Job(image, (0, 1)), None) for image in range(70)]
        >>> [len(group) for group in grouped(decoded, views=2)]
        [32, 32, 6]
    """
    size = max(1, BATCH // views)
    group: list[Decoded] = []
    for item in decoded:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def stack(group: Sequence[Decoded]) -> Pixels | None:
    """Joins all views of the readable images, [B, H, W, n]; None if there are none.

    Example:
        >>> views = np.zeros((2, 8, 8, 3), np.uint8)
        >>> good, bad = Decoded(Job(0, (0, 1)), views), Decoded(Job(1, (0, 1)), None, "truncated")
        >>> stack([good, bad]).shape
        (2, 8, 8, 3)
    """
    pixels = [item.pixels for item in group if item.pixels is not None]
    return np.concatenate(pixels) if pixels else None
