"""Reading images: a path, encoded bytes or an array becomes the upright pixels of a model.

A file is checked before it is decoded: its size by the header, and that its end is there, as a
decoder may fill a missing part with grey and say nothing.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import cv2
import imagesize
import numpy as np

from sigcam.core.errors import ImageError, UsageError
from sigcam.core.types import Array
from sigcam.images.npy import MAGIC, npy_size, read_npy
from sigcam.images.pixels import RGB, PixelFormat, converted
from sigcam.images.tiff import TiffHeader, exif_orientation, read_bands, tiff_header

FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF or NPY"

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


def read_image(
    source: ImageLike,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    pixels: PixelFormat = RGB,
) -> Array:
    """Reads an image.

    Args:
        source: the path of a file; the bytes of one; or an array [H, W] or [H, W, channels].
            Files are JPEG, PNG, WebP, GIF (the first frame), BMP, TIFF of any colour type or with
            any number of bands (interleaved, in planes or one a page; the package tifffile reads
            those), or NPY with such an array. EXIF orientation is honoured.
        max_pixels: files with more pixels are refused by their header, before they are
            decoded; None for no limit. Arrays are decoded already and not limited.
        pixels: what is wanted; uint8 RGB by default. `sigcam.images.pixels.converted` says which
            numbers of channels and types become which.

    Returns:
        uint8 [H, W, channels], or float32 where `pixels` says so; upright, C-contiguous. An array
        that is so already is returned itself, not a copy.

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
        >>> read_image(data.tobytes(), pixels=PixelFormat(1)).shape
        (4, 6, 1)
    """
    if isinstance(source, np.ndarray):
        return converted(source, pixels)
    return open_image(source, max_pixels).decode(pixels)


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


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image file whose header is readable and whose end is there.

    Attributes:
        data: the file's bytes.
        kind: its format.
        name: what errors call it.
        height, width: of the upright image, by the header.
        orientation: by EXIF, 1 to 8; anything else where there is none.
        tiff: the tags of a TIFF; None for another format, or where they are damaged.
    """

    data: bytes
    kind: str
    name: str
    height: int
    width: int
    orientation: int
    tiff: TiffHeader | None = None

    def decode(self, pixels: PixelFormat = RGB) -> Array:
        """Decodes the image: uint8 or float32 [H, W, channels], upright.

        Args:
            pixels: what is wanted.

        Raises:
            ImageError: damaged, or of another number of channels or type of values.
        """
        if self.kind == "NPY":
            return converted(read_npy(self.data, self.name), pixels, self.name)
        in_colour = pixels.as_bytes and pixels.channels in (1, 3)
        if self.tiff is not None:
            colours = self.tiff.is_photograph
            if not colours or not (in_colour or self.tiff.is_exact):
                bands = _upright(read_bands(self.data, self.name), self.tiff.orientation)
                return converted(bands, pixels, self.name)
            in_colour = in_colour and self.tiff.is_unsigned and self.tiff.bits <= 16
        # Grey files too: as colours their values are the same three times.
        image = self._decoded(cv2.IMREAD_COLOR_RGB) if in_colour else self._as_stored()
        return converted(image, pixels, self.name)

    def decode_reduced(self, reduction: int, pixels: PixelFormat = RGB) -> Array:
        """Decodes the image shrunk so many times.

        Cell by cell from the upright image's first row and column on. A cell's pixel is
        made from the lowest frequencies of its block, which is its mean but for the ringing
        of the higher ones.

        Args:
            reduction: 2, 4 or 8, not above `coarsest(...)`.
            pixels: what is wanted, bytes.

        Returns:
            uint8 [ceil(H / reduction), ceil(W / reduction), channels].

        Raises:
            ImageError: damaged, or of another number of channels.
        """
        image = self._decoded(_REDUCED[reduction])
        colours = cast("Array", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return converted(colours, pixels, self.name)

    def coarsest(self, reduction: int, pixels: PixelFormat = RGB) -> int:
        """Returns the largest divisor of `reduction`, a power of two, that it can be decoded at.

        Only JPEG's blocks allow it. They count from the stored image's first row and
        column: where the upright one's is another, its size must be a multiple.
        """
        if self.kind != "JPEG" or not pixels.as_bytes:
            return 1
        rows, columns = _FLIPPED.get(self.orientation, (False, False))
        return math.gcd(reduction, self.height if rows else 0, self.width if columns else 0)

    def _decoded(self, flags: int) -> Array:
        # Without IMREAD_IGNORE_ORIENTATION, OpenCV turns the image by its EXIF tag.
        return self._read(lambda data: cv2.imdecode(data, flags))

    def _as_stored(self) -> Array:
        """Decodes with the file's own channels, as RGB or RGBA, and its own type."""
        metadata: list[tuple[int, bytes]] = []

        def read(data: Array) -> Any:
            image, kinds, values = cv2.imdecodeWithMetadata(data, flags=cv2.IMREAD_UNCHANGED)
            metadata.extend(
                (int(kind), np.asarray(value).tobytes())
                for kind, value in zip(kinds, values or (), strict=False)
            )
            return image

        image = self._read(read)
        if image.ndim == 3 and image.shape[2] in (3, 4):
            order = [2, 1, 0, 3][: image.shape[2]]
            image = image[:, :, order]
        if self.kind == "TIFF":  # which OpenCV turns by itself
            return image
        found = dict(metadata).get(cv2.IMAGE_METADATA_EXIF, b"")
        return _upright(image, exif_orientation(found))

    def _read(self, decoder: Callable[[Array], Any]) -> Array:
        broken = (
            f"{self.name} is a {self.kind} that can't be decoded: damaged or truncated; "
            "get it again"
        )
        with quiet_opencv():
            try:
                image = cast("Array | None", decoder(np.frombuffer(self.data, np.uint8)))
            except cv2.error as exc:
                raise ImageError(broken) from exc
        if image is None or image.size == 0:
            raise ImageError(broken)
        return image


def _upright(image: Array, orientation: int) -> Array:
    """Turns a stored image as EXIF says; orientations 5 to 8 change rows and columns too."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows, columns = _FLIPPED.get(orientation, (False, False))
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


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
    stream.seek(0)
    if kind == "NPY":
        (width, height), orientation = npy_size(stream, name), 0
    else:
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
    tags = tiff_header(data) if kind == "TIFF" else None
    return Encoded(data, kind, name, height, width, orientation, tags)


def size_of_file(path: Path) -> tuple[int, int]:
    """Reads width and height of an image's file from its header, upright.

    Args:
        path: the file.

    Returns:
        The size in pixels; zeros where the header can't be read.

    Raises:
        OSError: the file can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.zeros((4, 6, 5), np.uint16))
        ...     size_of_file(Path(folder, "a.npy"))
        (6, 4)
    """
    with path.open("rb") as stream:
        is_npy = stream.read(len(MAGIC)) == MAGIC
        stream.seek(0)
        try:
            return npy_size(stream, str(path)) if is_npy else _header(stream)[:2]
        except ImageError:
            return 0, 0


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
    "NPY": (MAGIC,),
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
