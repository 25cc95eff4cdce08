"""The outputs that a request may ask for, by name, and how each is made.

`OUTPUTS` is the one list of them: the model's metadata, the checks of a request and the making of
an answer all go by it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np

from sigcam.core.errors import BackendError
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.runtime.explain import ExplainCall, NamedImage
from sigcam.runtime.explanation import Explanation, encode_image
from sigcam.runtime.model import ExportedModel, ModelOutputs, probabilities_of
from sigcam.runtime.several import stack_heatmaps
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import Elements, OutputTensor, RequestedOutput

__all__ = [
    "OUTPUTS",
    "ImageResult",
    "Output",
    "check_outputs",
    "default_outputs",
    "encoding_time",
    "make_outputs",
]

Size = int | str
"""A size in metadata: a number, or what it is of: -1 there."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What one image of a request came to.

    Attributes:
        explanations: K of them.
        outputs, row: what the run gave, and which row of it is this image's.
        call: what was asked.
        threshold: of the boxes.
    """

    explanations: list[Explanation]
    outputs: ModelOutputs
    row: int
    call: ExplainCall
    threshold: float

    @property
    def spec(self) -> Spec:
        """Returns the model's spec."""
        return self.call.model.spec

    @property
    def logits(self) -> Array:
        """Returns the logits of all classes, float32 [C]."""
        return np.asarray(self.outputs.logits[self.row])


Results = Sequence[ImageResult]


@dataclass(frozen=True, eq=False)
class Output:
    """An output by name.

    Attributes:
        datatype: the protocol's.
        shape: after the batch's axis; -1 for what differs from request to request, and "C", "h"
            and "w" for the number of classes and the size of the CAMs.
        make: returns the elements, and the sizes after the batch's axis.
        about: what it is, in a few words.
        pixel_bytes: bytes for each pixel of the image and class, before they are compressed; 1 at
            least where a heatmap is needed, 0 where the size of the image doesn't matter.
        is_file: whether its elements are files, which JSON can't hold.
        draws: whether the image itself is needed.
    """

    datatype: str
    shape: tuple[Size, ...]
    make: Callable[[Results], tuple[Elements, tuple[int, ...]]]
    about: str
    pixel_bytes: int = 0
    is_file: bool = False
    draws: bool = False


def check_outputs(
    wanted: Sequence[RequestedOutput],
    model: ExportedModel,
    name: str,
    *,
    has_images: bool,
    by_json: bool,
) -> None:
    """Refuses outputs that can't be had, before anything runs.

    Args:
        wanted: the outputs that are asked for.
        model: that is asked.
        name: the model's name, for messages.
        has_images: whether overlays can be drawn.
        by_json: whether the answer is JSON, unless an output is asked for as binary data.

    Raises:
        RequestError: an unknown output, or one that this model or carrier can't give.

    Example:
        check_outputs([RequestedOutput("boxes")], model, "cats", has_images=True, by_json=True)
    """
    known = available(model)
    for one in wanted:
        if one.name not in known:
            raise RequestError(
                f"unexpected inference output '{one.name}' for model '{name}', which gives "
                f"{', '.join(known)}"
            )
        output = known[one.name]
        if output.draws and not has_images:
            raise RequestError(
                f"output '{one.name}' is drawn over the image, and input 'image' of model "
                f"'{name}' is normalised already; send the file as 'encoded_image'"
            )
        if output.is_file and by_json and not (one.binary or one.base64):
            raise RequestError(
                f"output '{one.name}' is bytes, which JSON can't hold; ask for it with "
                '"parameters": {"binary_data": true}, or {"content_type": "base64"}'
            )
        if one.base64 and output.datatype != "BYTES":
            raise RequestError(
                f"content_type base64 is for BYTES; output '{one.name}' is {output.datatype}"
            )


def check_size(
    wanted: Sequence[RequestedOutput],
    images: Sequence[NamedImage],
    counts: Sequence[int],
    options: ServeOptions,
) -> None:
    """Refuses maps that would fill the memory.

    Args:
        wanted: the outputs that are asked for.
        images: the images.
        counts: how many classes maps of each are made of.
        options: the limits.

    Raises:
        RequestError: the maps are larger than the limit.
    """
    pixels = sum(
        one.placement.height * one.placement.width * count
        for one, count in zip(images, counts, strict=True)
    )
    each = 0
    for one in wanted:
        own = OUTPUTS[one.name].pixel_bytes
        # Numbers in JSON take some ten characters each, and a Python object meanwhile.
        is_array = OUTPUTS[one.name].datatype != "BYTES"
        each += 60 if own and is_array and not one.binary else own
    if pixels * each > options.response_bytes:
        raise RequestError(
            f"the maps that are asked for take {pixels * each} bytes before they are compressed, "
            f"and this server makes {options.response_bytes} at most; ask for fewer classes or "
            "images, for smaller images, or for cams, or start it with a larger --response-bytes"
        )


class HasOutputs(Protocol):
    """A model, opened or not."""

    @property
    def output_names(self) -> frozenset[str]:
        """Returns the names of the graph's outputs."""


def available(model: HasOutputs) -> dict[str, Output]:
    """Returns the outputs that a model gives, by name.

    Example:
        "evidence" in available(model)  # whether it has a sigmoid branch
    """
    if "evidence_logits" in model.output_names:
        return OUTPUTS
    return {name: one for name, one in OUTPUTS.items() if name not in _OF_THE_SIGMOID_BRANCH}


def default_outputs(model: ExportedModel, *, binary: bool) -> tuple[RequestedOutput, ...]:
    """Returns the outputs of a request that names none: the model's own.

    Args:
        model: that is asked.
        binary: whether they come as binary data.

    Example:
        default_outputs(model, binary=True)[0].name  # "logits"
    """
    known = available(model)
    return tuple(RequestedOutput(name, binary) for name in _OWN if name in known)


def make_outputs(wanted: Sequence[RequestedOutput], results: Results) -> tuple[OutputTensor, ...]:
    """Makes the outputs of a request.

    Args:
        wanted: checked before.
        results: of each image, in their order.

    Raises:
        RequestError: images that differ in size, or in the number of classes, for an output that
            is one array.
        BackendError: values that aren't finite, by the model's fault.
        ImageError: an image that can't be decoded whole, to draw on.

    Example:
        (boxes,) = make_outputs([RequestedOutput("boxes")], results)
    """
    counts = {len(one.explanations) for one in results}
    if len(counts) > 1:
        raise RequestError(
            f"the images have {', '.join(map(str, sorted(counts)))} classes of that probability, "
            "which no tensor holds; ask for one image at a time, or for top_k"
        )
    made = []
    for one in wanted:
        output = OUTPUTS[one.name]
        data, sizes = output.make(results)
        shape = (len(results), *sizes)
        if not isinstance(data, list):
            data = data.reshape(shape)
        made.append(OutputTensor(one.name, output.datatype, shape, data, one.binary, one.base64))
    return tuple(made)


def _logits(results: Results) -> tuple[Elements, tuple[int, ...]]:
    found = np.stack([one.logits for one in results])
    return found, found.shape[1:]


def _probabilities(results: Results) -> tuple[Elements, tuple[int, ...]]:
    logits = np.stack([one.logits for one in results])
    found = probabilities_of(logits, results[0].spec.task).astype(np.float32)
    return found, found.shape[1:]


def _of_classes(value: Callable[[Explanation], Any], dtype: Any) -> Callable[[Results], Any]:
    """Makes an array [B, K] of a number of each class."""

    def make(results: Results) -> tuple[Elements, tuple[int, ...]]:
        rows = [[value(explanation) for explanation in one.explanations] for one in results]
        return np.array(rows, dtype), (len(rows[0]),)

    return make


def _evidence_logits(results: Results) -> tuple[Elements, tuple[int, ...]]:
    rows = []
    for one in results:
        found = one.outputs.evidence_logits
        count = len(one.explanations)
        if found is None or found.shape[1] < count:
            raise RequestError(
                "evidence_logits are of the classes that the graph was asked for; with "
                "min_probability, ask for evidence"
            )
        rows.append(found[one.row, :count])
    return np.stack(rows), rows[0].shape


def _cams(results: Results) -> tuple[Elements, tuple[int, ...]]:
    maps = [explanation.cam for one in results for explanation in one.explanations]
    count = len(results[0].explanations)
    size = maps[0].shape if maps else results[0].spec.cam_shape
    stacked = np.stack(maps) if maps else np.empty((0, *size), np.float32)
    if not np.isfinite(stacked).all():
        raise BackendError(
            "the CAMs are not finite, so the model's weights are not finite or overflow; check "
            "the classifier's weights and export it again"
        )
    return stacked, (count, *size)


def _heatmaps(dtype: Any) -> Callable[[Results], Any]:
    def make(results: Results) -> tuple[Elements, tuple[int, ...]]:
        found = [explanation for one in results for explanation in one.explanations]
        sizes = sorted({one.size for one in found})
        if len(sizes) > 1:
            texts = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
            raise RequestError(
                f"heatmaps of images of {texts} pixels make no tensor; ask for one image at a "
                "time, or for heatmap_png"
            )
        if not found:
            return np.empty((0, 0, 0), dtype), (0, 0, 0)
        width, height = sizes[0]
        count = len(results[0].explanations)
        return stack_heatmaps(found, dtype), (count, height, width)

    return make


def _files(write: Callable[[Explanation, float], bytes]) -> Callable[[Results], Any]:
    """Makes elements of bytes, one for each class."""

    def make(results: Results) -> tuple[Elements, tuple[int, ...]]:
        made = [
            write(_forgetful(explanation), one.threshold)
            for one in results
            for explanation in one.explanations
        ]
        return made, (len(results[0].explanations),)

    return make


def _forgetful(explanation: Explanation) -> Explanation:
    """Returns an Explanation that keeps its heatmap for no longer than one output, if it is large.

    Those of a hundred classes of a large photograph would fill the memory. Small ones are kept: the
    next output wants them again.
    """
    width, height = explanation.size
    return explanation if width * height <= _KEPT_PIXELS else replace(explanation)


# Along a row, an enlarged CAM rises by equal steps, which this filter makes zeros of: of all
# settings that were tried the fastest, and the smallest files (640 x 480: 1.1 ms and 29 kB,
# against 1.8 ms and 60 kB with OpenCV's own).
_PNG = (
    cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB,
)  # fmt: skip


class _EncodingTime(threading.local):
    """Seconds in which this thread encoded images."""

    seconds = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin


encoding_time = _EncodingTime()
"""Whoever makes outputs in a thread sets it to 0 before, and reads it afterwards."""


def heatmap_png(explanation: Explanation) -> bytes:
    r"""Encodes a heatmap as a grey PNG of 8 bits, 255 for its maximum.

    Example:
        heatmap_png(session.explain("cat.jpg")[0])[:4]  # b"\x89PNG"
    """
    width, height = explanation.size
    levels = np.empty((height, width), np.uint8)
    explanation.write_heatmap(levels)
    with encoding_time.counted():
        done, data = cv2.imencode(".png", levels, _PNG)
    if not done:
        raise BackendError(f"OpenCV couldn't encode a heatmap of {width} x {height} pixels")
    return data.tobytes()


def _overlay(suffix: str) -> Callable[[Explanation, float], bytes]:
    """Draws the map over the image, and encodes that."""

    def draw(explanation: Explanation, _: float) -> bytes:
        drawn = explanation.overlay()
        with encoding_time.counted():
            return encode_image(drawn, suffix)

    return draw


def _boxes(explanation: Explanation, threshold: float) -> bytes:
    return json.dumps([list(box) for box in explanation.boxes(threshold)]).encode()


def _explanation(explanation: Explanation, threshold: float) -> bytes:
    entries = explanation.to_dict(threshold)
    del entries["source"]  # clients name no files
    return json.dumps(entries, ensure_ascii=False, allow_nan=False).encode()


_KEPT_PIXELS = 1_000_000

_OWN = ("logits", "class_ids_out", "evidence_logits", "cams")
_OF_THE_SIGMOID_BRANCH = ("evidence_logits", "evidence")

OUTPUTS: dict[str, Output] = {
    "logits": Output("FP32", ("C",), _logits, "logits of all classes"),
    "class_ids_out": Output(
        "INT64", (-1,), _of_classes(lambda one: one.class_id, np.int64), "the classes of the maps"
    ),
    "evidence_logits": Output("FP32", (-1,), _evidence_logits, "of the sigmoid branch"),
    "cams": Output("FP32", (-1, "h", "w"), _cams, "CAMs, at the features' resolution"),
    "probabilities": Output("FP32", ("C",), _probabilities, "of all classes"),
    "labels": Output(
        "BYTES", (-1,), _files(lambda one, _: one.label.encode()), "names of the classes"
    ),
    "evidence": Output(
        "FP32", (-1,), _of_classes(lambda one: one.evidence, np.float32), "0 to 1, of the classes"
    ),
    "heatmap": Output(
        "FP32", (-1, -1, -1), _heatmaps(np.float32), "in the image's pixels, 0 to 1", 4
    ),
    "heatmap_uint8": Output(
        "UINT8", (-1, -1, -1), _heatmaps(np.uint8), "the same as 256 levels", 1
    ),
    "heatmap_png": Output(
        "BYTES", (-1,), _files(lambda one, _: heatmap_png(one)), "the same as PNG files", 1, True
    ),
    "overlay_png": Output(
        "BYTES", (-1,), _files(_overlay(".png")),
        "the map over the image, as PNG files", 3, True, True,
    ),
    "overlay_jpeg": Output(
        "BYTES", (-1,), _files(_overlay(".jpg")),
        "the map over the image, as JPEG files", 3, True, True,
    ),
    "boxes": Output(
        "BYTES", (-1,), _files(_boxes), "JSON: [[x0, y0, x1, y1], ...] in the image's pixels", 1
    ),
    "explanations": Output(
        "BYTES", (-1,), _files(_explanation), "JSON: class, probability, evidence, boxes and more",
        1,
    ),
}  # fmt: skip
"""What every model gives; models without a sigmoid branch have no evidence."""
