"""From image files to the head's input: decode, augment, backbone, neck.

Images are decoded and cut in worker threads (OpenCV frees the interpreter's lock)
while the backbone works on those before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.classifier.rewrite import fold_batch_norms
from sigcam.core.errors import ImageError, ModelError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import read_image
from sigcam.images.preprocess import Original, read_input
from sigcam.train.augment import Augmentation, Pixels
from sigcam.train.data import ImageList

HeadName = Literal["sigmoid", "softmax"]

BATCH = 64
"""Views that go through the backbone at once."""


def head_of(dual: DualBranch, name: HeadName) -> Head:
    """The head of that name."""
    return dual.sigmoid_head if name == "sigmoid" else dual.softmax_head


def default_workers() -> int:
    """Threads that decode: the cores, at most 8 (the backbone needs the rest of a server)."""
    return min(os.cpu_count() or 1, 8)


@dataclass(frozen=True)
class Job:
    """Views of one image that are wanted: its index and the views' indices."""

    image: int
    views: tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """What a job gave: uint8 [V, H, W, 3], or the reason why the image can't be read."""

    job: Job
    pixels: Pixels | None
    error: str = ""


class ViewReader:
    """Decodes jobs in threads, in order, a bounded number ahead. A context manager."""

    def __init__(
        self,
        data: ImageList,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        workers: int | None = None,
    ) -> None:
        count = default_workers() if workers is None else workers
        if count < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        self.data, self.preprocessing, self.augmentation = data, preprocessing, augmentation
        self._plain = replace(preprocessing, layout="uint8_nhwc")
        self._ahead = 4 * count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="sigcam-decode")

    def __enter__(self) -> ViewReader:  # noqa: PYI034 (Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, jobs: Iterable[Job]) -> Iterator[Decoded]:
        """The jobs' views in the order of the jobs."""
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
            return Decoded(job, np.stack(self._views(job)))
        except ImageError as exc:
            return Decoded(job, None, str(exc))

    def _views(self, job: Job) -> list[Pixels]:
        """The plain view is read as in use, a large JPEG smaller; crops are cut of the whole."""
        file = self.data.file(job.image)
        plain = read_input(file, self._plain) if 0 in job.views else None
        whole = Original(read_image(file)) if plain is None else plain.original
        return [
            self.augmentation.view(whole.image, self.preprocessing, job.image, view)
            if view or plain is None
            else plain.tensor
            for view in job.views
        ]


class StemRunner:
    """Runs prepared images through the frozen backbone and the head's neck."""

    def __init__(
        self,
        dual: DualBranch,
        preprocessing: Preprocessing,
        device: torch.device,
        head: HeadName = "sigmoid",
    ) -> None:
        self.features = fold_batch_norms(dual.features)
        self.neck, self.device = head_of(dual, head).neck, device
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=device).reshape(shape) * 255
        self._scale = 1 / (torch.tensor(preprocessing.std, device=device).reshape(shape) * 255)
        self._format = self._memory_format(preprocessing)

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """The neck's output.

        Args:
            pixels: uint8 [B, H, W, 3] RGB.

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
        """Channels last where the network's graph takes it.

        A quarter less CPU time for EfficientNet-Lite0, the same values to rounding. A graph
        that reshapes with `view` (channel shuffles) refuses it; that is tried once.
        """
        self._format = torch.channels_last
        blank = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)
        try:
            with torch.inference_mode():
                self._run(blank.to(self.device))
        except RuntimeError:
            return torch.contiguous_format
        return torch.channels_last


def grouped(decoded: Iterable[Decoded], views: int) -> Iterator[list[Decoded]]:
    """Collects decoded images until about `BATCH` views are together."""
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
    """All views of the readable images, uint8 [B, H, W, 3]; None if there are none."""
    pixels = [item.pixels for item in group if item.pixels is not None]
    return np.concatenate(pixels) if pixels else None
