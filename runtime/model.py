"""From the outputs of one run of the graph to what is said of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.images.preprocess import Original, Placement
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends.base import Backend, DeviceHeatmaps, HeatmapRequest
from sigcam.runtime.explanation import ClassResult


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image that was read.

    Attributes:
        original: the whole image.
        tensor: the network's input, without the batch axis.
        placement: where that lies in the image.
        source: the path that was given; None for bytes and arrays.
    """

    original: Original
    tensor: Array
    placement: Placement
    source: str | None


def outputs_to_read(
    spec: Spec, backend: Backend, *, features_only: bool = False, head_input: str | None = None
) -> list[str]:
    """The outputs that a Session needs to see; not those that the backend makes heatmaps of itself.

    Args:
        spec: of the artifact.
        backend: that has it loaded.
        features_only: for a method that makes its own heatmaps of the features.
        head_input: what the head graph takes, if the session has one.

    Raises:
        ArtifactError: the graph doesn't have the inputs and outputs that its spec means.
    """
    inputs = {info.name for info in backend.inputs}
    outputs = {info.name for info in backend.outputs}
    own = ["cams"] if spec.profile == "fused" else ["features", "cam_weights"]
    wanted = ["logits", "class_ids_out", *(["features"] if features_only else own)]
    if head_input is not None and head_input not in wanted:
        wanted.append(head_input)
    needed = {"image", "class_ids"} if spec.classes.mode == "input" else {"image"}
    if inputs != needed or not outputs.issuperset(wanted):
        raise ArtifactError(
            f"the graph doesn't fit its spec: it should take {sorted(needed)} and give {wanted}, "
            f"but takes {sorted(inputs)} and gives {sorted(outputs)}; export the model again"
        )
    if not features_only and makes_heatmaps(spec, backend):
        wanted = [name for name in wanted if name not in own or name == head_input]
    return [*wanted, "evidence_logits"] if "evidence_logits" in outputs else wanted


def makes_heatmaps(spec: Spec, backend: Backend) -> bool:
    """Whether the backend makes the heatmaps of the artifact's own method, where its outputs are."""
    return backend.makes_heatmaps and spec.profile == "split"


def made_heatmaps(
    spec: Spec,
    backend: Backend,
    feeds: Mapping[str, Array],
    wanted: Sequence[str],
    images: Sequence[PreparedImage],
) -> tuple[dict[str, Array], DeviceHeatmaps]:
    """Runs the network on a backend that makes the heatmaps itself.

    Args:
        spec: of the artifact.
        backend: that `makes_heatmaps`.
        feeds: the graph's inputs.
        wanted: outputs to return beside the heatmaps.
        images: those in the feeds.

    Raises:
        BackendError: the backend failed.
        ArtifactError: the graph's outputs don't belong together.
    """
    request = HeatmapRequest(tuple(image.placement for image in images), spec.nwc)
    outputs, made = backend.infer_heatmaps(feeds, wanted, request)
    outputs["cams"] = made.cams
    return outputs, made


def own_cams(outputs: Mapping[str, Array], spec: Spec) -> Array:
    """The CAMs of the artifact's own method, float32 [B, K, h, w].

    Raises:
        ArtifactError: features and CAM weights that don't belong together.
    """
    if spec.profile == "fused":
        return outputs["cams"]
    try:
        return clamp_combine(outputs["features"], outputs["cam_weights"], clamp=spec.nwc)
    except ValueError as exc:
        raise ArtifactError(
            f"the graph's outputs don't belong together: {exc}; export the model again"
        ) from exc


def class_results(
    probabilities: Array,
    class_ids: Array,
    evidence_logits: Array | None,
    cams: Array,
    spec: Spec,
) -> list[ClassResult]:
    """What is to be said of each of K classes of one image.

    Args:
        probabilities: [C].
        class_ids: int64 [K].
        evidence_logits: float32 [K] or more; None without a sigmoid branch.
        cams: float32 [K, h, w]; each is copied, as a view would keep the batch's alive.
        spec: of the artifact.

    Raises:
        BackendError: evidence that is not a number.
    """
    ids = class_ids[: len(cams)].tolist()
    chosen = probabilities[ids].tolist()
    evidence = [None] * len(ids) if evidence_logits is None else _evidence(evidence_logits)
    results = []
    for rank, cam in enumerate(cams):
        own = cam.copy()
        own.setflags(write=False)
        label = spec.label(ids[rank])
        results.append(ClassResult(ids[rank], label, chosen[rank], evidence[rank], own))
    return results


def softmax(logits: Array) -> Array:
    """Softmax of float32 [C] in float64, shifted so that no exponential overflows.

    Raises:
        BackendError: logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise BackendError(
            "the logits are not finite, so the model's weights are not finite or overflow; "
            "check the classifier and export it again"
        )
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(powers / powers.sum())


def _evidence(logits: Array) -> list[float | None]:
    """Sigmoid of each logit."""
    if np.isnan(logits).any():
        raise BackendError(
            "the evidence is not a number, so the sigmoid branch's weights are not finite; "
            "train the branch again"
        )
    # tanh doesn't overflow for large negative logits as exp(-x) does.
    found: list[float | None] = (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).tolist()
    return found
