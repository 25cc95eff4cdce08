"""Keeps one parity run: the images that a graph is tried on, and what came out so far.

A gradient can jump: a ReLU whose input lies within rounding of zero may be open on one
backend and shut on another. So an image on which the graph is outside the tolerance is
tried again in float64, with the pixels moved by a rounding error of float32
(`is_unstable`). Where the definition itself moves by more than the tolerance, there is
nothing to compare with, and the image doesn't count. Nor does one on which the definition
isn't finite, or whose logits or features move by that much. `MIN_COUNTED` images must count;
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
    is_ill_conditioned,
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
        model: a copy of the model in float64, which gives the definition; without a sigmoid branch
            where the options say that there is none.
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
        unused = None if options.has_sigmoid else dual.sigmoid_head
        self.model = in_double(dual, without=unused).eval()
        self.images: Array = sample_images(preprocessing)
        self.worst: dict[str, OutputError] = {}
        self._references: dict[int, Reference] = {}
        self._unstable: dict[int, bool] = {}
        self._seen: set[int] = set()
        self._empty: set[int] = set()
        self._undefined: set[int] = set()
        self._ill: dict[int, bool] = {}
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
        if not self.counts(index):
            return
        self._seen.add(index)
        classes = torch.from_numpy(class_ids)
        wanted = self.reference(index).outputs(classes)  # once: it takes gradients in float64
        if "cams" in wanted and not bool(wanted["cams"].any()):
            self._empty.add(index)
        if not all(bool(torch.isfinite(value).all()) for value in wanted.values()):
            self._undefined.add(index)
            return
        errors = errors_of(outputs, wanted, self._logit_floors())
        smooth = [error.max_rel for name, error in errors.items() if name not in GRADIENT_OUTPUTS]
        within = all(error <= self.options.tolerance for error in smooth)
        if not within and self.is_ill_conditioned(index):
            return
        jumping = errors.keys() & GRADIENT_OUTPUTS
        # A NaN is never above the tolerance, so it never counts as a jump.
        outside = any(errors[name].max_rel > self.options.tolerance for name in jumping)
        if outside and self._is_unstable(index, classes):
            errors = {name: errors[name] for name in errors.keys() - jumping}
        for name, error in errors.items():
            self.worst[name] = worse(self.worst.get(name, error), error)

    def counts(self, index: int) -> bool:
        """Returns whether the definition has finite logits for an image; counts it if not.

        Args:
            index: the image's place in `images`.
        """
        if not self._is_defined(index):
            self._seen.add(index)
            self._undefined.add(index)
        return index not in self._undefined

    def is_ill_conditioned(self, index: int) -> bool:
        """Returns whether an image's logits or features move by rounding; counts it if so.

        Args:
            index: the image's place in `images`.
        """
        if index not in self._ill:
            self._ill[index] = is_ill_conditioned(self.reference(index), self._logit_floors())
            self._seen.add(index)
        return self._ill[index]

    def influence(self) -> float:
        """Returns by how much the logits of an image change with another image beside it.

        It is the largest change on the first two images, as a share of their largest logit.
        """
        images = torch.cat(as_images(self.images[:2], self.preprocessing))
        with torch.no_grad():
            together = self.model.softmax_head(self.model.features(images))
        alone = torch.cat([self.reference(index).logits for index in range(2)])
        return float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-30))

    @property
    def largest_logit(self) -> float:
        """Returns the largest logit of the softmax branch on the sample images."""
        return self._logit_floors()["logits"]

    @property
    def counted_images(self) -> Array:
        """Returns the images that count, [P, H, W, n]."""
        return self.images[sorted(self._seen - self._left_out())]

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
            left_out=len(self._left_out()),
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
            raise ParityError(
                f"{what} can't be checked, nothing was written: at least {MIN_COUNTED} images must "
                f"count, and of {len(self._seen)} " + "; ".join(self._causes())
            )

    def _causes(self) -> list[str]:
        """Says why images don't count, and what to do, a sentence for each cause."""
        tolerance = self.options.tolerance
        masked = self._masked_classes()
        undefined = (
            "the model itself gives NaN or infinity (it divides by a deviation or a sum that is "
            "zero, perhaps); add a small number to the divisor"
        )
        if masked:
            undefined = (
                f"the model's own logits of the classes {masked} are infinite (masked out); return "
                f"the logits of the others alone"
            )
        causes = {
            undefined: self._undefined,
            f"the model's own logits or features move within rounding by more than {tolerance:g} "
            f"(it divides by what is nearly zero, perhaps); add a small number to the divisor, or "
            f"accept a larger tolerance": {i for i, ill in self._ill.items() if ill},
            f"the gradient jumps within rounding by more than {tolerance:g}; name a later target "
            f"layer, or accept a larger tolerance": {i for i, on in self._unstable.items() if on},
        }
        return [f"on {len(found)} {cause}" for cause, found in causes.items() if found]

    def _masked_classes(self) -> list[int]:
        """Returns the classes whose logits are infinite on each image, if all others are finite."""
        if not self._undefined:
            return []
        rows = torch.cat([self.reference(index).logits for index in sorted(self._undefined)])
        masked = torch.isinf(rows).all(0)
        return masked.nonzero()[:, 0].tolist() if rows[:, ~masked].isfinite().all() else []

    def _is_defined(self, index: int) -> bool:
        one = self.reference(index)
        return bool(torch.isfinite(torch.cat([one.logits, one.sigmoid_logits], 1)).all())

    def _is_unstable(self, index: int, classes: Tensor) -> bool:
        if index not in self._unstable:
            self._unstable[index] = is_unstable(
                self.reference(index), classes, self._logit_floors()
            )
        return self._unstable[index]

    def _logit_floors(self) -> dict[str, float]:
        """Returns how large the logits of the sample images are, by output."""
        if self._floors is None:
            samples = [i for i in range(self._sample_count) if self._is_defined(i)]
            indices = samples or [i for i in self._references if self._is_defined(i)]
            self._floors = logit_floors(map(self.reference, indices))
        return self._floors

    def _counted(self) -> int:
        return len(self._seen) - len(self._left_out())

    def _left_out(self) -> set[int]:
        jumping = {index for index, found in self._unstable.items() if found}
        return self._undefined | jumping | {index for index, found in self._ill.items() if found}
