"""Reading images: a path, encoded bytes or an array becomes upright RGB bytes.

A file is checked before it is decoded: its size by the header, and that its end is there, as a
decoder may fill a missing part with grey and say nothing.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import cv2
import imagesize
import numpy as np

from sigcam.core.errors import ImageError, UsageError
from sigcam.core.types import Array

FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Array"

DEFAULT_MAX_PIXELS = 178_956_970
"""The most pixels that are decoded unless the caller says otherwise: 512 MiB as RGB."""

_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

# By EXIF orientation: whether the upright rows, and columns, run against the stored ones.
_FLIPPED = {
    2: (False, True),
    3: (True, True),
    4: (True, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}


def read_image(source: ImageLike, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Array:
    """Reads an image.

    Args:
        source: the path of a file; the bytes of one; or an array: uint8 or uint16,
            [H, W], [H, W, 1], [H, W, 3] RGB or [H, W, 4] RGBA. Files are JPEG, PNG, WebP,
            GIF (the first frame), BMP or TIFF of any colour type. Alpha is dropped, 16 bits
            become the upper 8, and EXIF orientation is honoured.
        max_pixels: files with more pixels are refused by their header, before they are
            decoded; None for no limit. Arrays are decoded already and not limited.

    Returns:
        uint8 [H, W, 3] RGB, upright, C-contiguous. An array that is so already is
        returned itself, not a copy.

    Raises:
        ImageError: a file that is missing, unreadable, empty, truncated, too large or not an
            image; an array of another shape or dtype.
        UsageError: `source` is none of the above.

    Example:
        >>> read_image(np.zeros((4, 6), np.uint16)).shape
        (4, 6, 3)
        >>> done, data = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))
        >>> read_image(data.tobytes()).shape
        (4, 6, 3)
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    return open_image(source, max_pixels).decode()


def open_image(source: ImageLike, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Encoded:
    """Reads an image's file and checks it, without decoding it.

    Args:
        source: path or bytes, as for `read_image`.
        max_pixels: as for `read_image`.

    Raises:
        ImageError, UsageError: as `read_image`, but for damage that only decoding finds.

    Example:
        >>> done, data = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))
        >>> found = open_image(data.tobytes())
        >>> found.kind, found.height, found.width
        ('PNG', 4, 6)
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"the image given as {len(data)} bytes"
        return read_encoded(io.BytesIO(data), name, max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"an image is a path, bytes or an array, got {type(source).__name__}; "
            "pass several images as a list, or use Session.stream"
        )
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image; pass the files in it")
        if not path.is_file():
            raise ImageError(f"there is no image file {path}; check the path")
        with path.open("rb") as stream:
            return read_encoded(stream, str(path), max_pixels)
    except OSError as exc:
        reason = exc.strerror or exc
        raise ImageError(f"cannot read {path}: {reason}; check the path") from exc


def from_array(array: Array) -> Array:
    """Checks an array, and returns it as `read_image` would.

    Raises:
        ImageError: another shape or dtype.

    Example:
        >>> grey = np.array([[0, 65535]], np.uint16)
        >>> from_array(grey).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return np.ascontiguousarray(array)  # the usual one, without the texts below
    wanted = "uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] RGB or [H, W, 4] RGBA"
    got = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 4:
        raise ImageError(f"one image is {wanted}, got {got}; pass several as a list of arrays")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image is {wanted}, got {got}")
    if array.size == 0:
        raise ImageError(f"an image has at least one pixel, got {got}")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an image is {wanted}, got {got}; scale it to 0..255 as uint8")
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.broadcast_to(array.reshape(*array.shape[:2], 1), (*array.shape[:2], 3))
    elif array.shape[2] == 4:
        array = array[:, :, :3]
    return np.ascontiguousarray(array)


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image file whose header is readable and whose end is there.

    Attributes:
        data: the file's bytes.
        kind: its format.
        name: what errors call it.
        height, width: of the upright image, by the header.
        orientation: by EXIF, 1 to 8; anything else where there is none.
    """

    data: bytes
    kind: str
    name: str
    height: int
    width: int
    orientation: int

    def decode(self) -> Array:
        """Decodes the image: uint8 [H, W, 3] RGB, upright.

        Raises:
            ImageError: damaged.
        """
        return self._decoded(cv2.IMREAD_COLOR_RGB)

    def decode_reduced(self, reduction: int) -> Array:
        """Decodes the image shrunk so many times, [ceil(H / reduction), ceil(W / reduction), 3].

        Cell by cell from the upright image's first row and column on. A cell's pixel is
        made from the lowest frequencies of its block, which is its mean but for the ringing
        of the higher ones.

        Args:
            reduction: 2, 4 or 8, not above `coarsest(...)`.

        Raises:
            ImageError: damaged.
        """
        image = self._decoded(_REDUCED[reduction])
        return cast("Array", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))

    def coarsest(self, reduction: int) -> int:
        """Returns the largest divisor of `reduction`, a power of two, that it can be decoded at.

        Only JPEG's blocks allow it. They count from the stored image's first row and
        column: where the upright one's is another, its size must be a multiple.
        """
        if self.kind != "JPEG":
            return 1
        rows, columns = _FLIPPED.get(self.orientation, (False, False))
        return math.gcd(reduction, self.height if rows else 0, self.width if columns else 0)

    def _decoded(self, flags: int) -> Array:
        broken = (
            f"{self.name} is a {self.kind} that can't be decoded: damaged or truncated; "
            "get it again"
        )
        with quiet_opencv():
            try:
                # Without IMREAD_IGNORE_ORIENTATION, OpenCV turns the image by its EXIF tag.
                image = cast(
                    "Array | None", cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)
                )
            except cv2.error as exc:
                raise ImageError(broken) from exc
        if image is None:
            raise ImageError(broken)
        return image


def read_encoded(stream: BinaryIO, name: str, max_pixels: int | None) -> Encoded:
    """Reads an image file whole, unless its first bytes refuse it.

    Args:
        stream: of the file.
        name: what errors call it.
        max_pixels: most that it may have; None for no limit.

    Raises:
        ImageError: empty, not an image, too large or truncated.

    Example:
        >>> png = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> encoded = read_encoded(io.BytesIO(png), "black.png", max_pixels=None)
        >>> encoded.kind, encoded.height, encoded.width
        ('PNG', 4, 6)
        >>> read_encoded(io.BytesIO(png), "black.png", max_pixels=20)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ImageError: black.png has 6 x 4 pixels, more than max_pixels = 20; ...
    """
    head = stream.read(16)
    if not head:
        raise ImageError(f"{name} is empty; an image ({FORMATS}) is wanted")
    kind = _format_of(head)
    if kind is None:
        raise ImageError(f"{name} is not an image that sigcam reads; convert it to {FORMATS}")
    width, height, orientation = _header(stream)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is a {kind} without a readable size: damaged or truncated")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than max_pixels = {max_pixels}; "
            "scale it down or raise max_pixels"
        )
    stream.seek(0)
    data = stream.read()
    if not _is_whole(kind, data):
        raise ImageError(f"{name} is a truncated {kind}: its end is missing; get it again")
    return Encoded(data, kind, name, height, width, orientation)


def _header(stream: BinaryIO) -> tuple[int, int, int]:
    """Reads width, height (upright) and EXIF orientation; 0 for what isn't there."""
    try:
        info = imagesize.get_info(stream, dpi=False, colors=False, channels=False)
    except Exception:  # a damaged header makes the library raise many kinds
        return 0, 0, 0
    return info.width, info.height, info.rotation


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    for kind, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return kind
    return None


_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",),
}


def _is_whole(kind: str, data: bytes) -> bool:
    """Says whether the file reaches its end, where the format tells.

    OpenCV before 5 fills the missing part of a truncated JPEG with grey and says
    nothing. It refuses truncated GIF, BMP and TIFF files by itself.
    """
    if kind == "JPEG":
        return _jpeg_is_whole(data)
    if kind == "PNG":
        return _png_is_whole(data)
    if kind == "WebP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True


def _jpeg_is_whole(data: bytes) -> bool:
    """Says whether an end marker follows the first scan.

    The segments before it are walked by their lengths, because an EXIF thumbnail is a
    JPEG of its own with its own end marker. Inside a scan, 0xFF is always escaped.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _png_is_whole(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + length
    return False


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_before = 0


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV from writing about damaged files to standard error.

    What it would say becomes an error of ours. The level belongs to the whole process, so
    the last of several threads to leave puts it back.

    Example:
        >>> with quiet_opencv():
        ...     cv2.imdecode(np.zeros(8, np.uint8), cv2.IMREAD_COLOR) is None
        True
    """
    global _quiet_users, _quiet_before
    logging = cv2.utils.logging
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_before = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0:
                logging.setLogLevel(_quiet_before)
