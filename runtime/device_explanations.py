"""What `Session.explain_device` returns: results that lie on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sigcam.core.arguments import one_of
from sigcam.core.errors import UsageError
from sigcam.runtime.model import ExportedModel

if TYPE_CHECKING:
    from typing import Any

    from sigcam.images.preprocess import Placement
    from sigcam.kernels.arrays import DeviceArray
    from sigcam.runtime.classes import ClassRequest


@dataclass(frozen=True, eq=False)
class DeviceExplanations:
    """Heatmaps, CAMs and scores of images, on the GPU.

    The arrays belong to whoever holds them: no later call writes to them, and each gives its
    memory back when its last reference is dropped, in the order of the stream that the call was
    given. All speak `__dlpack__` and `__cuda_array_interface__`, by which other libraries share
    them without a copy and wait for that stream; `to_host()` copies to NumPy. Drop them before the
    GPU's primary context is gone: the session holds it until it is closed, and torch, CuPy and the
    CUDA runtime hold it too.

    Nothing was looked at on the host, so nothing was checked there: logits that aren't finite come
    as they are, and a heatmap of a CAM that isn't finite, or has no evidence, is not valid.

    Attributes:
        heatmaps: of a batch [B, K, H, W]; of a list of images a tuple of [K, H, W], one for each;
            float32 from 0 to 1 or uint8, as the session was loaded. None for heatmaps="lazy".
        valid: bool [B, K]; a heatmap that isn't valid is 0 everywhere.
        cams: float32 [B, K, h, w], "Beyond Softmax", Eq. 4.
        class_ids: int64 [B, K].
        logits: float32 [B, C], before softmax or sigmoid.
        evidence_logits: float32 [B, K], before the sigmoid; None without that branch.
        inputs: what the network was given, uint8 [B, h, w, n] or float32 [B, n, h, w].
        placements: where each input lies in its image; `placement.crop_box` is what was seen.
    """

    heatmaps: DeviceArray | tuple[DeviceArray, ...] | None
    valid: DeviceArray
    cams: DeviceArray
    class_ids: DeviceArray
    logits: DeviceArray
    evidence_logits: DeviceArray | None
    inputs: DeviceArray
    placements: tuple[Placement, ...]


def explain_on_device(
    model: ExportedModel, images: Any, request: ClassRequest, layout: str | None, stream: Any
) -> DeviceExplanations:
    """Does what `Session.explain_device` says.

    Raises:
        UsageError, ArtifactError, BackendError: as it says.
    """
    if layout is not None:
        one_of(layout, "layout", ("NHWC", "NCHW"))
    spec, backend = model.spec, model.backend
    if not backend.explains_on_device:
        raise UsageError(
            f"the backend {backend.name!r} runs on the CPU, so it takes no images on a GPU; load "
            'the model with backend "ort-cuda" or "ort-tensorrt", or an engine of `sigcam '
            "build-engine`; or copy the images to the host and call explain"
        )
    if not spec.preprocessing.takes_bytes:
        raise UsageError(
            f"explain_device takes images of bytes, and this model takes values whose scale is "
            f"{spec.preprocessing.scale:g}; copy the images to the host and call explain"
        )
    if spec.profile == "features":
        raise UsageError(
            f"the CAMs of the method {spec.method} take several runs, or work outside the graph; "
            "call explain, or export a method of the graph"
        )
    from sigcam.runtime.backends.cuda.on_device import DeviceQuestion, answer

    classes = spec.classes.k if request.ids is None else len(request.ids)
    question = DeviceQuestion(
        images, layout, stream, request.ids, spec.preprocessing, classes,
        model.device_outputs, spec.nwc, spec.signed, model.heatmap_options,
    )  # fmt: skip
    found = answer(backend, question)  # type: ignore[arg-type]  # it explains on the device
    return DeviceExplanations(
        heatmaps=found.heatmaps,
        valid=found.valid,
        cams=found.cams,
        class_ids=found.scores["class_ids_out"],
        logits=found.scores["logits"],
        evidence_logits=found.scores.get("evidence_logits"),
        inputs=found.inputs,
        placements=found.placements,
    )
