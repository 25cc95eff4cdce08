"""Holds the graph of an ONNX file beside the module that was read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False)
class HeldFile:
    """The graph of a file, with its weights. Copies of a classifier share one.

    Attributes:
        path: the file.
        source: what ONNX Runtime was given to compare with: the file, or its graph without the
            rounding that was left out.
        model: its graph as it was read, with functions inlined; it must not be changed. Weights
            may be in files in the folder of `path`.
        changes: what was changed in it before, in words; empty for nothing.
        tolerance: the largest difference of its logits from those of the graph that was read,
            as a share of the largest.
    """

    path: Path
    source: Path | bytes
    model: onnx.ModelProto
    changes: str
    tolerance: float

    def __deepcopy__(self, memo: object) -> HeldFile:
        """Returns itself: it is only read."""
        return self
