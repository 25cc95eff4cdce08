"""From the inputs of a request to images that the network takes, and the classes of each.

An image comes encoded (`encoded_image`, or `image` of the datatype BYTES): it is decoded, turned
upright and placed by the runtime, and maps are of its own pixels. Or it comes as the network's own
input (`image` in the model's datatype): maps are then of the input's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sigcam.core.errors import ImageError, ImageWarning
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.images.headers import format_of, read_header
from sigcam.images.pixels import pixel_format
from sigcam.images.preprocess import Original, Placement, place
from sigcam.runtime.backends.base import TensorInfo
from sigcam.runtime.classes import ClassRequest, request_for
from sigcam.runtime.explain import ExplainCall, NamedImage, read_image_for
from sigcam.runtime.model import ExportedModel
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.datatypes import datatype_of
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InputTensor

__all__ = [
    "CLASS_IDS",
    "ENCODED",
    "IMAGE",
    "Inputs",
    "can_draw",
    "image_tensor",
    "is_encoded",
    "read_inputs",
]

IMAGE, ENCODED, CLASS_IDS = "image", "encoded_image", "class_ids"

_KEPT_PIXELS = 2_000_000
"""Larger images are decoded again for an overlay: many decoded ones would fill the memory."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request brings.

    Attributes:
        images: prepared for the network.
        requests: for each image the classes that the input class_ids names; None without it.
    """

    images: list[NamedImage]
    requests: list[ClassRequest] | None

    def calls(self, call: ExplainCall) -> list[ExplainCall]:
        """Returns the call of each image: all the same, unless the input class_ids says more."""
        if self.requests is None:
            return [call] * len(self.images)
        return [replace(call, request=one) for one in self.requests]


def image_tensor(request: InferRequest, model: ExportedModel, name: str, most: int) -> InputTensor:
    """Finds the input with the images, and checks what can be checked before they are read.

    Args:
        request: the request.
        model: that is asked.
        name: its name, for messages.
        most: images that a request may bring.

    Raises:
        RequestError: an unknown or missing input, no images or too many.

    Example:
        image_tensor(request, model, "cats", 16).shape[0]  # the number of images
    """
    inputs = {one.name: one for one in request.inputs}
    known = [IMAGE, ENCODED, *([CLASS_IDS] if model.takes_class_ids else [])]
    for given in inputs:
        if given not in known:
            raise RequestError(
                f"unexpected inference input '{given}' for model '{name}', which takes "
                f"{', '.join(known)}"
            )
    if (IMAGE in inputs) == (ENCODED in inputs):
        raise RequestError(
            f"model '{name}' takes one of the inputs {IMAGE} (its own tensor) and {ENCODED} (files "
            f"of images), got {'both' if IMAGE in inputs else 'neither'}"
        )
    tensor = inputs.get(ENCODED) or inputs[IMAGE]
    if not tensor.shape:
        raise RequestError(
            f"input '{tensor.name}' has no shape but model requires batch dimension for '{name}'"
        )
    if not 1 <= tensor.shape[0] <= most:
        raise RequestError(
            f"inference request batch-size must be from 1 to {most} for '{name}', got "
            f"{tensor.shape[0]}"
        )
    return tensor


def is_encoded(tensor: InputTensor) -> bool:
    """Says whether the images of a request are files, and not the network's own input."""
    return tensor.name == ENCODED or tensor.datatype == "BYTES"


def can_draw(tensor: InputTensor, model: ExportedModel) -> bool:
    """Says whether overlays can be drawn: not over an input that is normalised already."""
    return is_encoded(tensor) or model.spec.preprocessing.layout != "float32_nchw"


def read_inputs(
    request: InferRequest,
    tensor: InputTensor,
    model: ExportedModel,
    name: str,
    options: ServeOptions,
    *,
    keep_images: bool,
) -> Inputs:
    """Reads and prepares the images of a request.

    Args:
        request: the request.
        tensor: its images, as `image_tensor` found them.
        model: that is asked.
        name: its name, for messages.
        options: the limits.
        keep_images: whether the images are wanted again, to draw on.

    Raises:
        RequestError: another datatype or shape, or too much.
        ImageError: an image that can't be read, or is too large.
        UnknownClassError: a class that the model doesn't have.

    Example:
        tensor = image_tensor(request, model, "cats", 16)
        found = read_inputs(request, tensor, model, "cats", ServeOptions(), keep_images=False)
    """
    ids = next((one for one in request.inputs if one.name == CLASS_IDS), None)
    requests = _requests(ids, tensor.shape[0], model, name, options)
    if is_encoded(tensor):
        images = _decoded(tensor, name, model.spec.preprocessing, options, keep_images)
    else:
        images = _given(tensor, name, model)
    return Inputs(images, requests)


def _decoded(
    tensor: InputTensor,
    name: str,
    preprocessing: Preprocessing,
    options: ServeOptions,
    keep_images: bool,
) -> list[NamedImage]:
    """Reads encoded images, of the shape [B] or [B, 1]."""
    _check_datatype(tensor, name, "BYTES")
    files = tensor.data
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)) or not isinstance(files, list):
        raise _wrong_shape(tensor, name, [-1])
    found = []
    for index, data in enumerate(files):
        which = f"image {index} of input '{tensor.name}'"
        kind = format_of(data[:64])
        if kind not in options.image_formats:
            raise ImageError(
                f"{which} must be a {' or '.join(options.image_formats)} file, got "
                f"{f'a {kind}' if kind else f'{len(data)} bytes of something else'}; in JSON, send "
                'it as base64 with "parameters": {"content_type": "base64"}'
            )
        read = _read(data, kind, which, preprocessing, options.max_pixels)
        found.append(_lightened(read, data, preprocessing, keep_images))
    return found


def _read(
    data: bytes, kind: str, which: str, preprocessing: Preprocessing, max_pixels: int
) -> NamedImage:
    """Reads and prepares one file; what a session would warn of is refused here."""
    if kind not in ("JPEG", "TIFF"):  # the pages of a TIFF may be the bands of one image
        count = read_header(kind, data, which).frames
        if count > 1:
            raise ImageError(
                f"{which} is a {kind} of {count} images; send the one that is meant as a file of "
                "its own"
            )
    try:
        read = read_image_for(data, preprocessing, max_pixels)
    except ImageWarning as exc:  # where warnings are errors
        raise ImageError(f"{which}: {exc}") from exc
    if isinstance(read, ImageError):
        raise ImageError(f"{which}: {read}") from read
    return read


def _lightened(
    read: NamedImage, data: bytes, preprocessing: Preprocessing, keep_image: bool
) -> NamedImage:
    """Lets go of the decoded image, where it isn't needed, or can be had of the file again."""
    height, width = read.placement.height, read.placement.width
    if keep_image and height * width <= _KEPT_PIXELS:
        return read
    pixels = pixel_format(preprocessing)
    shape = (height, width, pixels.channels)
    source = data if keep_image else b""
    return replace(read, original=Original(None, source, shape, None, pixels))


def _given(tensor: InputTensor, name: str, model: ExportedModel) -> list[NamedImage]:
    """Takes the network's own input apart, image by image."""
    (info,) = (one for one in model.backend.inputs if one.name == IMAGE)
    _check_datatype(tensor, name, datatype_of(info.dtype))
    array = _array(tensor, name, info)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"input '{tensor.name}' for model '{name}' has values that aren't finite"
        )
    placement = _whole_input(model.spec.preprocessing)
    is_chw = model.spec.preprocessing.layout == "float32_nchw"
    return [NamedImage(one, placement, Original(None if is_chw else one), None) for one in array]


def _whole_input(preprocessing: Preprocessing) -> Placement:
    """Returns the placement of an image that is the network's input itself."""
    own = replace(preprocessing, rule="stretch", resize=None)
    return place(own, preprocessing.height, preprocessing.width)


def _requests(
    tensor: InputTensor | None, count: int, model: ExportedModel, name: str, options: ServeOptions
) -> list[ClassRequest] | None:
    if tensor is None:
        return None
    (info,) = (one for one in model.backend.inputs if one.name == CLASS_IDS)
    _check_datatype(tensor, name, "INT64")
    array = _array(tensor, name, info)
    if array.shape[0] != count:
        raise RequestError(
            f"input '{CLASS_IDS}' batch size does not match other inputs for '{name}'"
        )
    if not 1 <= array.shape[1] <= options.max_classes:
        raise RequestError(
            f"input '{CLASS_IDS}' must name from 1 to {options.max_classes} classes for an image, "
            f"got {array.shape[1]}"
        )
    return [request_for(row, 1, model.spec) for row in array.tolist()]


def _array(tensor: InputTensor, name: str, info: TensorInfo) -> Array:
    assert not isinstance(tensor.data, list)  # noqa: S101 (BYTES were refused)
    if not info.fits(tensor.data):
        raise _wrong_shape(tensor, name, [-1 if one is None else one for one in info.shape])
    return tensor.data


def _check_datatype(tensor: InputTensor, name: str, wanted: str) -> None:
    if tensor.datatype != wanted:
        raise RequestError(
            f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model "
            f"'{name}' expects '{wanted}'"
        )


def _wrong_shape(tensor: InputTensor, name: str, wanted: Sequence[int]) -> RequestError:
    expected, got = (",".join(map(str, one)) for one in (wanted, tensor.shape))
    return RequestError(
        f"unexpected shape for input '{tensor.name}' for model '{name}'. Expected [{expected}], "
        f"got [{got}]"
    )
