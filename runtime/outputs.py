"""From the outputs of one run of the graph to Explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.errors import ArtifactError, BackendError
from sigcam.runtime.geometry import Placement
from sigcam.runtime.result import Explanation
from sigcam.runtime.spec import Spec

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    Attributes:
        image: uint8 [H, W, 3] RGB, upright.
        tensor: the network's input, without the batch axis.
        placement: where that lies in the picture.
        source: the path that was given; None for bytes and arrays.
    """

    image: Array
    tensor: Array
    placement: Placement
    source: str | None


def outputs_to_read(spec: Spec, backend: Backend) -> list[str]:
    """The outputs that a Session needs.

    Raises:
        ArtifactError: the graph doesn't have the inputs and outputs that its spec means.
    """
    inputs = {info.name for info in backend.inputs}
    outputs = {info.name for info in backend.outputs}
    wanted = ["logits", "class_ids_out"]
    wanted += ["grids"] if spec.profile == "fused" else ["features", "cam_weights"]
    needed = {"image", "class_ids"} if spec.classes.mode == "input" else {"image"}
    if inputs != needed or not outputs.issuperset(wanted):
        raise ArtifactError(
            f"the graph doesn't fit its spec: it should take {sorted(needed)} and give {wanted}, "
            f"but takes {sorted(inputs)} and gives {sorted(outputs)}; export the model again"
        )
    return [*wanted, "evidence_logits"] if "evidence_logits" in outputs else wanted


def explanations(
    pictures: Sequence[Picture], outputs: Mapping[str, Array], spec: Spec, count: int
) -> list[list[Explanation]]:
    """The results of one batch.

    Args:
        pictures: B pictures, in the order of the batch.
        outputs: of the graph, by name, as `outputs_to_read` lists them.
        spec: of the artifact.
        count: how many of the K classes to return for each picture; the first ones.

    Raises:
        BackendError: logits that are not finite, evidence that is not a number.
    """
    if spec.profile == "fused":
        grids = outputs["grids"]
    else:
        grids = clamp_combine(outputs["features"], outputs["cam_weights"], clamp=spec.nwc)
    return [
        _of_picture(picture, {name: array[row] for name, array in outputs.items()}, grid, spec)
        for row, (picture, grid) in enumerate(zip(pictures, grids[:, :count], strict=True))
    ]


def _of_picture(
    picture: Picture, outputs: Mapping[str, Array], grids: Array, spec: Spec
) -> list[Explanation]:
    """The results of one picture, for as many classes as there are grids [k, h, w]."""
    probabilities = _softmax(outputs["logits"])
    evidence: list[float | None] = [None] * len(grids)
    if "evidence_logits" in outputs:
        evidence = [_sigmoid(float(value)) for value in outputs["evidence_logits"][: len(grids)]]
    results = []
    for rank, grid in enumerate(grids):
        class_id = int(outputs["class_ids_out"][rank])
        own = grid.copy()  # a view would keep the whole batch's grids alive
        own.setflags(write=False)
        results.append(
            Explanation(
                class_id=class_id,
                label=spec.label(class_id),
                probability=float(probabilities[class_id]),
                evidence=evidence[rank],
                grid=own,
                placement=picture.placement,
                image=picture.image,
                source=picture.source,
            )
        )
    return results


def _softmax(logits: Array) -> Array:
    """Softmax of float32 [C] in float64, shifted so that no exponential overflows."""
    if not np.isfinite(logits).all():
        raise BackendError(
            "the logits are not finite, so the model's weights are not finite or overflow; "
            "check the classifier and export it again"
        )
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(powers / powers.sum())


def _sigmoid(logit: float) -> float:
    if np.isnan(logit):
        raise BackendError(
            "the evidence is not a number, so the sigmoid branch's weights are not finite; "
            "train the branch again"
        )
    # tanh doesn't overflow for large negative logits as exp(-x) does.
    return float(0.5 * (1 + np.tanh(0.5 * logit)))
