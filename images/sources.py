"""What an image may be given as, brought to a path, bytes or an array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.arguments import is_address, path_of, shown
from sigcam.core.errors import ImageArgumentError, UsageError
from sigcam.core.types import Array
from sigcam.images.frames import Frame
from sigcam.images.orientation import upright

WANTED = (
    "an image is a path, the bytes of a file, a file that is open for reading bytes, a PIL image, "
    "or an array [H, W, channels]"
)


def plain_source(source: Any) -> Path | bytes | Array | Frame:
    """Brings an image as a caller gives it to one of three kinds.

    Args:
        source: a path, in which "~" is expanded; the bytes of a file; an open file, which is read
            from where it stands and left open; a PIL image, turned as its EXIF tag says; an
            array; or a Frame.

    Returns:
        A path, bytes, an array of NumPy's own class, or the Frame itself.

    Raises:
        ImageArgumentError: anything else; says what to do about tensors, addresses and sequences.

    Example:
        >>> import io
        >>> plain_source(io.BytesIO(b"GIF89a"))
        b'GIF89a'
        >>> plain_source("https://example.org/cat.jpg")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ImageArgumentError: https://example.org/cat.jpg is an address; ...
    """
    if isinstance(source, np.ndarray):
        if isinstance(source, np.ma.MaskedArray):
            raise ImageArgumentError(
                "a masked array has no pixels where it is masked; pass array.filled(0), or with "
                "the value that shall stand there"
            )
        return np.asarray(source)  # a matrix would keep two axes whatever is cut from it
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        return _path(source)
    if isinstance(source, Frame):
        return source
    if _is_of(source, "PIL") and hasattr(source, "getexif"):
        return _from_pillow(source)
    if callable(getattr(source, "read", None)):
        return _contents(source)
    raise ImageArgumentError(f"{WANTED}, got {shown(source)}{_advice(source)}")


def _path(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if isinstance(text, str) and is_address(text):
        if text.lower().startswith("rtsp"):
            advice = "`sigcam explain MODEL ADDRESS` reads streams"
        else:
            advice = "download it, and pass the file or its bytes"
        raise ImageArgumentError(f"{text} is an address; {advice}")
    try:
        return path_of(source, "an image")
    except UsageError as exc:
        raise ImageArgumentError(str(exc)) from exc


def _contents(stream: Any) -> bytes:
    """Reads an open file to its end."""
    try:
        data = stream.read()
    except (OSError, ValueError) as exc:  # closed, or open for writing
        raise ImageArgumentError(
            f"the file that was given can't be read: {exc}; open it with open(path, 'rb')"
        ) from exc
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageArgumentError(
            "the file that was given is open for reading text; open it with open(path, 'rb')"
        )
    if not data:
        raise ImageArgumentError(
            "the file that was given has nothing left to read; if it was read before, go back with "
            "file.seek(0)"
        )
    return bytes(data)


def _from_pillow(image: Any) -> Array:
    """Returns the pixels of a PIL image, upright."""
    try:
        orientation = image.getexif().get(0x0112, 1)
        if image.mode in ("1", "LA", "La"):
            image = image.convert("L")
        elif image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode not in ("L", "RGB", "RGBA") and image.mode[:1] not in ("I", "F"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as exc:  # PIL decodes when pixels are asked for
        raise ImageArgumentError(
            f"the PIL image that was given can't be decoded: {exc}; pass the path of its file"
        ) from exc
    return upright(pixels, orientation)


def _is_of(value: object, package: str) -> bool:
    """Says whether an object's class, or one that it is made from, is a package's."""
    return any(kind.__module__.split(".")[0] == package for kind in type(value).__mro__)


def _advice(source: Any) -> str:
    """Says how to make an image of what came."""
    if _is_of(source, "torch"):
        return f"; pass {_tensor_advice(source)}"
    if isinstance(source, (list, tuple)):
        return "; make an array of it with numpy.array, or pass several images as one flat list"
    if isinstance(source, (set, frozenset, dict)) or hasattr(source, "__next__"):
        return "; pass several images as a list, or use Session.stream"
    if hasattr(source, "__array__"):
        return "; pass numpy.asarray(...) of it"
    return "; pass several images as a list, or use Session.stream"


def _tensor_advice(tensor: Any) -> str:
    """Returns what makes an array of a tensor, as far as its type and shape tell."""
    text = "tensor"
    if tensor.ndim == 4:
        text = "several as a list, each as one of tensor"
    if tensor.ndim == 3 or tensor.ndim == 4:
        channels_last = tensor.shape[-1] in (1, 3, 4) and tensor.shape[-3] not in (1, 3, 4)
        text += "" if channels_last else ".permute(1, 2, 0)"
    if tensor.is_floating_point():
        text += ".mul(255).byte()"
    end = ".cpu().numpy()"
    if tensor.is_floating_point():
        end += " for values from 0 to 1 (normalised ones have to be turned back first)"
    return text + end
