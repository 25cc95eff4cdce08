"""Keeps one parity run: the images that a graph is tried on, and what came out so far.

A gradient can jump: a ReLU whose input lies within rounding of zero may be open on one
backend and shut on another. So an image on which the graph is outside the tolerance is
tried again in float64, with the pixels moved by a rounding error of float32
(`is_unstable`). Where the definition itself moves by more than the tolerance, there is
nothing to compare with, and the image doesn't count. `MIN_COUNTED` images must count;
further ones are tried until they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.errors import ParityError
from sigcam.core.spec import OutputError, ParityReport, Preprocessing
from sigcam.core.types import Array
from sigcam.export.options import ExportOptions
from sigcam.export.parity.compare import (
    GRADIENT_OUTPUTS,
    errors_of,
    is_unstable,
    logit_floors,
    worse,
)
from sigcam.export.parity.inputs import (
    SAMPLES_IN_WORDS,
    as_images,
    further_images,
    sample_images,
)
from sigcam.export.parity.reference import Reference

MIN_COUNTED = 3
"""The fewest images that must count."""

MAX_FURTHER = 15
"""The most further images that are tried where too many don't count."""


class ParityRun:
    """Compares a graph's outputs with their definition, image by image.

    Attributes:
        options: what the graph computes, with the tolerance.
        preprocessing: how an image becomes the input.
        model: a copy of the model in float64, which gives the definition.
        images: the images so far, uint8 [P, H, W, 3].
        worst: name of each output to its largest error so far.
    """

    def __init__(
        self, dual: DualBranch, options: ExportOptions, preprocessing: Preprocessing
    ) -> None:
        """Makes the images; nothing is compared yet.

        Args:
            dual: the model, float32; it isn't changed.
            options: what the graph computes, with the tolerance.
            preprocessing: how an image becomes the input.
        """
        self.options, self.preprocessing = options, preprocessing
        self.model = in_double(dual).eval()
        self.images: Array = sample_images(preprocessing)
        self.worst: dict[str, OutputError] = {}
        self._references: dict[int, Reference] = {}
        self._unstable: dict[int, bool] = {}
        self._seen: set[int] = set()
        self._empty: set[int] = set()
        self._sample_count = len(self.images)
        self._floors: dict[str, float] | None = None

    def reference(self, index: int) -> Reference:
        """Returns what an image should give; made once, as float64 convolutions are slow.

        Args:
            index: the image's place in `images`.
        """
        if index not in self._references:
            (image,) = as_images(self.images[index : index + 1], self.preprocessing)
            self._references[index] = Reference(self.model, image, self.options)
        return self._references[index]

    def add(self, index: int, outputs: Mapping[str, Array], class_ids: Array) -> None:
        """Compares the outputs of one image and keeps the errors.

        Args:
            index: the image's place in `images`.
            outputs: the graph's outputs by name, with a batch of 1.
            class_ids: the classes that they are for, int64 [1, K].
        """
        self._seen.add(index)
        classes = torch.from_numpy(class_ids)
        wanted = self.reference(index).outputs(classes)  # once: it takes gradients in float64
        if "cams" in wanted and not bool(wanted["cams"].any()):
            self._empty.add(index)
        errors = errors_of(outputs, wanted, self._logit_floors())
        jumping = errors.keys() & GRADIENT_OUTPUTS
        # A NaN is never above the tolerance, so it never counts as a jump.
        outside = any(errors[name].max_rel > self.options.tolerance for name in jumping)
        if outside and self._is_unstable(index, classes):
            errors = {name: errors[name] for name in errors.keys() - jumping}
        for name, error in errors.items():
            self.worst[name] = worse(self.worst.get(name, error), error)

    def try_further_images(self, run: Callable[[Sequence[int]], None]) -> None:
        """Runs one further image after the other until enough count, or there are no more.

        Args:
            run: runs the graph on the images of some indices and adds what comes out.
        """
        if self._counted() < MIN_COUNTED:
            further = further_images(self.preprocessing, MAX_FURTHER)
            self.images = np.concatenate([self.images, further])
            for index in range(self._sample_count, len(self.images)):
                if self._counted() < MIN_COUNTED:
                    run([index])

    def report(self, batch_sizes: Sequence[int]) -> ParityReport:
        """Returns what came out.

        Args:
            batch_sizes: the batch sizes that were tried.
        """
        added = len(self._seen) - self._sample_count
        further = f"; {added} further smooth random ones" if added else ""
        return ParityReport(
            reference=f"torch {torch.__version__} float64",
            backend=f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider",
            tolerance=self.options.tolerance,
            batch_sizes=tuple(batch_sizes),
            inputs=SAMPLES_IN_WORDS + further,
            outputs=dict(self.worst),
            left_out=sum(self._unstable.values()),
            empty=len(self._empty),
        )

    def check_count(self, what: str) -> None:
        """Refuses a parity report that too few images stand behind.

        Args:
            what: the graph, for the message.

        Raises:
            ParityError: fewer than `MIN_COUNTED` images count.
        """
        if self._counted() < MIN_COUNTED:
            seen, left_out = len(self._seen), len(self._seen) - self._counted()
            raise ParityError(
                f"on {left_out} of {seen} images the gradient jumps within rounding by more than "
                f"{self.options.tolerance:g}, so {what} can't be checked; nothing was written. "
                f"Name a later target layer, or accept a larger tolerance"
            )

    def _is_unstable(self, index: int, classes: Tensor) -> bool:
        if index not in self._unstable:
            self._unstable[index] = is_unstable(
                self.reference(index), classes, self._logit_floors()
            )
        return self._unstable[index]

    def _logit_floors(self) -> dict[str, float]:
        """Returns how large the logits of the sample images are, by output."""
        if self._floors is None:
            self._floors = logit_floors(map(self.reference, range(self._sample_count)))
        return self._floors

    def _counted(self) -> int:
        return len(self._seen) - sum(self._unstable.values())
