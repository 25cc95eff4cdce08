"""The fidelity certificate: what another precision costs, against float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Precision = Literal["int8", "int8-head", "fp16", "bf16"]


@dataclass(frozen=True)
class Fidelity:
    """How closely an artifact of another precision follows the float32 one.

    Measured by one engine on held-out pictures, none of which was used to calibrate.

    Attributes:
        precision: "int8": the way to the logits computes in 8 bits; "int8-head": the sigmoid
            branch's large matrices are stored in 8 bits; "fp16", "bf16": all weights are
            stored in 16 bits.
        engine: what ran both, e.g. "onnxruntime 1.32.0 CPUExecutionProvider".
        pictures: held-out pictures, for the agreement.
        calibration: pictures that the ranges of int8 were taken from; 0 without any.
        seed: of the shuffle that chose both.
        agreement: share of the held-out pictures with the same most probable class, 0 to 1.
        compared: pictures whose grids were compared, for the same class: float32's most
            probable one. All, where the graph takes `class_ids` (or for the classes that it
            names, where it picks several); otherwise those on which both chose that class.
            Not counted are pictures whose grid is constant in both.
        mean_correlation, worst_correlation: Pearson's, of the two grids of a picture, -1 to
            1; 0 where one of them is constant. None where `compared` is 0.
        mean_box_iou: intersection over union of the largest boxes of the two maps at the
            default threshold, 0 to 1; None where no compared picture has a box.
        min_agreement, min_correlation: the limits below which no file is written.
        kept_float: layers that were kept in float32 to stay within these limits, and
            those that the user named.
    """

    precision: Precision
    engine: str
    pictures: int
    calibration: int
    seed: int
    agreement: float
    compared: int
    mean_correlation: float | None
    worst_correlation: float | None
    mean_box_iou: float | None
    min_agreement: float
    min_correlation: float
    kept_float: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether agreement and mean correlation reach their limits."""
        return (
            self.agreement >= self.min_agreement
            and self.mean_correlation is not None
            and self.mean_correlation >= self.min_correlation
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fidelity:
        """Reads what `dataclasses.asdict` gave; keys that it doesn't know are ignored."""
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}
        known["kept_float"] = tuple(known.get("kept_float", ()))
        return cls(**known)


def described(fidelity: Fidelity) -> str:
    """The measured numbers in words."""
    if fidelity.mean_correlation is None or fidelity.worst_correlation is None:
        grids = "no grids of the same class to compare"
    else:
        grids = (
            f"grids of {fidelity.compared} correlate {fidelity.mean_correlation:.4f} in the mean "
            f"and {fidelity.worst_correlation:.4f} at worst"
        )
    boxes = "" if fidelity.mean_box_iou is None else f", IoU of boxes {fidelity.mean_box_iou:.3f}"
    return f"{fidelity.agreement:.1%} of {fidelity.pictures} pictures agree, {grids}{boxes}"
