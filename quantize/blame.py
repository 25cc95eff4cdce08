"""Which layers hurt: how far each one's own rounding moves its output.

A layer is blamed for its own rounding, of its input and of its weights, and it shows whether
keeping the layer in float32 is enough: a rounded input comes from the convolution before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from sigcam.quantize.aside import Aside
from sigcam.quantize.selection import Selection
from sigcam.quantize.source import Source
from sigcam.runtime.progress import Report

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Blame:
    """What rounding does to one layer's output.

    Attributes:
        layer: its name.
        by_input, by_weight: the error from rounding one of the two: ||rounded - float32|| /
            ||float32|| of the output over all pictures and positions, for each output channel,
            then their mean. A channel that is large beside the others neither hides their
            errors nor makes up for them.
    """

    layer: str
    by_input: float
    by_weight: float

    @property
    def error(self) -> float:
        """Of both, as if they were independent."""
        return float(np.hypot(self.by_input, self.by_weight))


def rank_layers(
    source: Source,
    converted: onnx.ModelProto,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    threads: int | None,
    report: Report,
) -> list[Blame]:
    """The layers, the worst first.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it.
        selection: what computes in 8 bits there.
        feeds: the inputs of one picture after the other.
        count: of them.
        threads: of the engine.
        report: called with the pictures done and `count`.

    Raises:
        BackendError: the engine failed.
    """
    aside = Aside(source, converted, selection)
    for name, layer in aside.layers.items():
        aside.add_error(name, f"{name}/input error", of_input=True, of_weight=False)
        aside.add_error(name, f"{name}/weight error", of_input=False, of_weight=True)
        for value, output in zip(
            (layer.output[0], f"{name}/input error", f"{name}/weight error"),
            _outputs(name),
            strict=True,
        ):
            aside.add_reduced(name, value, "ReduceSumSquare", output)
    sums = aside.sums(feeds, count, threads=threads, report=report)
    found = []
    for name in aside.layers:
        kept, by_input, by_weight = (sums[output] for output in _outputs(name))
        found.append(Blame(name, _error(kept, by_input), _error(kept, by_weight)))
    return sorted(found, key=lambda one: one.error, reverse=True)


def _outputs(layer: str) -> tuple[str, str, str]:
    return f"{layer}/kept", f"{layer}/by input", f"{layer}/by weight"


def _error(kept: Array, moved: Array) -> float:
    alive = kept > 0
    return float(np.sqrt(moved[alive] / kept[alive]).mean()) if alive.any() else 0.0
