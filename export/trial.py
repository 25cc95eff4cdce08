"""The pictures that a graph is tried on for its certificate, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from sigcam.export.definition import Definition
from sigcam.export.errors import JUMPING, errors_of, is_unstable, worse
from sigcam.export.graph import GraphOptions
from sigcam.export.pictures import INPUTS, as_images, further_pictures, sample_pictures
from sigcam.runtime.errors import ParityError
from sigcam.runtime.spec import Geometry, OutputError, Parity
from sigcam.train.dual_branch import DualBranch

LEAST = 3
"""Fewest pictures that must count."""

FURTHER = 15
"""Most further pictures that are tried where too many don't count."""

Array = npt.NDArray[Any]


class Trial:
    """The pictures of one certificate and what came out so far."""

    def __init__(
        self, twin: DualBranch, options: GraphOptions, geometry: Geometry, tolerance: float
    ) -> None:
        self.twin, self.options, self.geometry = twin, options, geometry
        self.tolerance = tolerance
        self.pictures: Array = sample_pictures(geometry)
        self.worst: dict[str, OutputError] = {}
        self._known: dict[int, Definition] = {}
        self._unstable: dict[int, bool] = {}
        self._seen: set[int] = set()
        self._empty: set[int] = set()
        self._first = len(self.pictures)

    def known(self, index: int) -> Definition:
        """What the picture should give; made once, as float64 convolutions are slow."""
        if index not in self._known:
            (images,) = as_images(self.pictures[index : index + 1], self.geometry)
            self._known[index] = Definition(self.twin, images, self.options)
        return self._known[index]

    def judge(self, index: int, got: Mapping[str, Array], ids: Array) -> None:
        """Takes in the outputs of one picture for the classes `ids` [1, K]."""
        self._seen.add(index)
        classes = torch.from_numpy(ids)
        want = self.known(index).outputs(classes)  # once: it takes the gradients in float64
        if not bool(want["grids"].any()):
            self._empty.add(index)
        errors = errors_of(got, want)
        # NaN is larger than nothing, so it never counts as a jump.
        if any(errors[name].max_rel > self.tolerance for name in errors.keys() & JUMPING):
            if index not in self._unstable:
                at = self.pictures[index : index + 1]
                self._unstable[index] = is_unstable(
                    self.twin, at, self.geometry, self.options, classes, self.tolerance
                )
            if self._unstable[index]:
                errors = {name: error for name, error in errors.items() if name not in JUMPING}
        for name, error in errors.items():
            self.worst[name] = worse(self.worst.get(name, error), error)

    def try_further(self, run: Callable[[Sequence[int]], None]) -> None:
        """Runs one picture after the other until enough count, or there are no more."""
        if self._counted() < LEAST:
            more = further_pictures(self.geometry, FURTHER)
            self.pictures = np.concatenate([self.pictures, more])
            for index in range(self._first, len(self.pictures)):
                if self._counted() < LEAST:
                    run([index])

    def certificate(self, batch_sizes: tuple[int, ...]) -> Parity:
        """What came out."""
        added = len(self._seen) - self._first
        return Parity(
            reference=f"torch {torch.__version__} float64",
            engine=f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider",
            tolerance=self.tolerance,
            batch_sizes=batch_sizes,
            inputs=INPUTS + (f"; {added} further smooth random ones" if added else ""),
            outputs=dict(self.worst),
            left_out=sum(self._unstable.values()),
            empty=len(self._empty),
        )

    def check_count(self, what: str) -> None:
        """Refuses a certificate that too few pictures stand behind."""
        if self._counted() < LEAST:
            seen, left_out = len(self._seen), len(self._seen) - self._counted()
            raise ParityError(
                f"on {left_out} of {seen} pictures the gradient jumps within rounding by more than "
                f"{self.tolerance:g}, so {what} can't be checked; nothing was written. Name a "
                f"later target layer, or accept a larger tolerance"
            )

    def _counted(self) -> int:
        return len(self._seen) - sum(self._unstable.values())
