"""Maps of further classes of a picture, after the fact, from the head graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.runtime.classes import Classes, resolve_classes
from sigcam.runtime.errors import UsageError
from sigcam.runtime.head import Head
from sigcam.runtime.multipass.base import MultiPass, Subject
from sigcam.runtime.outputs import class_results
from sigcam.runtime.progress import reporter
from sigcam.runtime.result import ClassResult
from sigcam.runtime.spec import Spec

Array = npt.NDArray[Any]


class Further:
    """What the network said of one picture, and what makes maps of it.

    Shared by all Explanations of the picture that came from one call. Holds copies: no part
    of a batch is kept alive.
    """

    def __init__(
        self,
        spec: Spec,
        head: Head,
        method: MultiPass | None,
        probabilities: Array,
        values: Array,
        grid: Array,
    ) -> None:
        """Keeps what is needed of a picture.

        Args:
            spec: of the artifact.
            head: its head graph.
            method: that made the picture's maps; None for the artifact's own.
            probabilities: float64 [C].
            values: float32 [...], the picture's row of the output `head.head_input`.
            grid: float32 [h, w], one of the picture's maps.
        """
        self._spec = spec
        self._head = head
        self._method = method
        self._probabilities = probabilities
        self._values = values.copy()
        self._grid = grid

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copy, or one sent to another process, has no engine: there `further` is None."""
        return _nothing, ()

    def results(self, classes: Classes) -> tuple[list[ClassResult], int]:
        """One result for each class in the order given, and the passes that they took.

        Raises:
            UsageError, UnknownClassError, BackendError: as `Explanation.for_classes`.
        """
        ids = np.array(resolve_classes(classes, self._spec), np.int64)
        method = self._method
        if method is None:
            outputs = self._run(ids, "grids", "evidence_logits")
            grids, passes = outputs["grids"][0], 1
        else:
            if not method.from_features:
                raise UsageError(
                    f"{method.name} runs the whole network for every channel, so further classes "
                    f"cost as much as a new call: explain(..., classes=..., "
                    f"method={method.name!r}) makes all maps in one"
                )
            outputs = self._run(ids, "evidence_logits")
            passes = 1 if outputs else 0
            if method.class_agnostic:
                grids = np.broadcast_to(self._grid, (len(ids), *self._grid.shape))
            else:
                subject = Subject(self._values, ids)
                grids, more = method.grids(subject, reporter(False, method.name))
                passes += more - 1  # all but the network's
        evidence = outputs["evidence_logits"][0] if "evidence_logits" in outputs else None
        return class_results(self._probabilities, ids, evidence, grids, self._spec), passes

    def _run(self, ids: Array, *wanted: str) -> dict[str, Array]:
        return self._head.infer(self._values[None], ids[None], wanted)


def _nothing() -> None:
    return None
