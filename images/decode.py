"""Reading images: a path, encoded bytes or an array becomes the upright pixels of a model.

A file is checked before it is decoded: its size by the header, and that its end is there, as a
decoder may fill a missing part with grey and say nothing. What each format says and how it is
decoded is in `formats/`; all that they have in common is here.
"""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import cv2
import numpy as np

from sigcam.core.cpus import thread_limit
from sigcam.core.errors import ImageError, ImageWarning, UsageError
from sigcam.core.types import Array
from sigcam.images.formats import bmp, heic, jpeg, npy, png, pnm, tiff
from sigcam.images.formats.header import Header
from sigcam.images.formats.tiff import TiffHeader
from sigcam.images.frames import Frame, frame_of
from sigcam.images.headers import BEGINNING, FORMATS, format_of, problem_of, read_header
from sigcam.images.orientation import FLIPPED, upright
from sigcam.images.pixels import RGB, PixelFormat, converted, upper_bits
from sigcam.images.profiles import is_grey, to_srgb
from sigcam.images.sources import plain_source

ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Array | Frame | Any"
)
"""A path, the bytes of a file, a file open for reading bytes, a PIL image, an array, or a Frame."""

DEFAULT_MAX_PIXELS = 178_956_970
"""The most pixels that are decoded unless the caller says otherwise: 512 MiB as RGB."""

# What OpenCV decodes at most: pixels each way, and in all.
MOST_SIDE, MOST_DECODED = 1 << 20, 1 << 30


def read_image(
    source: ImageLike,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    pixels: PixelFormat = RGB,
) -> Array:
    """Reads an image.

    Args:
        source: the path of a file; the bytes of one; or an array [H, W] or [H, W, channels].
            Files are JPEG, PNG, WebP, GIF, BMP, PNM, AVIF, JPEG 2000, HEIC (with pillow-heif),
            TIFF of any colour type or with any number of bands (interleaved, in planes or one a
            page; the package tifffile reads those), or NPY with such an array. Orientation is
            honoured; colours of 8 bits become sRGB where a profile says that they are others.
            Of an animation, or of a TIFF with several images, the first one is read, and an
            ImageWarning says so; "clip.gif#2" or `Frame` name another.
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
    source = plain_source(source)
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
    frame: int | None = None
    source = plain_source(source)
    if isinstance(source, Frame):
        frame = source.index
        source = plain_source(source.image)
    if isinstance(source, bytes):
        data = source
        name = f"the image given as {len(data)} bytes"
        return read_encoded(io.BytesIO(data), name, max_pixels, frame)
    if not isinstance(source, Path):
        raise UsageError("an array is decoded already, and has no file to open")
    path = source
    try:
        named = frame_of(path) if frame is None and "#" in path.name else None
        if named is not None:
            return open_image(named, max_pixels)
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image; pass the files in it")
        if not path.is_file():
            raise ImageError(f"there is no image file {path}; check the path")
        with path.open("rb") as stream:
            return read_encoded(stream, str(path), max_pixels, frame)
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
        header: what it says of itself.
        frame: which of its images; None for the first, or the only one.
        tiff: the tags of a TIFF; None for another format.
    """

    data: bytes
    kind: str
    name: str
    header: Header
    frame: int | None = None
    tiff: TiffHeader | None = None

    @property
    def height(self) -> int:
        """Returns the height of the upright image, by the header."""
        return self.header.upright[1]

    @property
    def width(self) -> int:
        """Returns the width of the upright image, by the header."""
        return self.header.upright[0]

    def decode(self, pixels: PixelFormat = RGB) -> Array:
        """Decodes the image: uint8 or float32 [H, W, channels], upright.

        Args:
            pixels: what is wanted.

        Raises:
            ImageError: damaged, or of another number of channels or type of values.
        """
        if self.kind == "NPY":
            return converted(npy.read_npy(self.data, self.name), pixels, self.name)
        image = self._stored(pixels)
        if pixels.as_bytes and image.dtype == np.uint16:
            image = self._in_range(image)
            if self.header.profile and pixels.channels in (1, 3, 4):
                image = upper_bits(image, self.name)
        if pixels.as_bytes and pixels.channels in (1, 3, 4) and image.dtype == np.uint8:
            image = self._in_srgb(image)
        return converted(self._upright(image), pixels, self.name)

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
        image = self._in_srgb(jpeg.decode(self.data, self.header, self.name, reduction))
        return converted(self._upright(image), pixels, self.name)

    def coarsest(self, reduction: int, pixels: PixelFormat = RGB) -> int:
        """Returns the largest divisor of `reduction`, a power of two, that it can be decoded at.

        Only JPEG's blocks allow it. They count from the stored image's first row and
        column: where the upright one's is another, its size must be a multiple.
        """
        if self.kind != "JPEG" or not pixels.as_bytes or self.frame is not None:
            return 1
        rows, columns = FLIPPED.get(self.header.orientation, (False, False))
        return math.gcd(reduction, self.height if rows else 0, self.width if columns else 0)

    def _upright(self, image: Array) -> Array:
        """Turns what `_stored` gives, unless the decoder has done so by itself."""
        if self.kind in ("HEIC", "TIFF") or self.header.orientation == 1:
            return image
        return upright(image, self.header.orientation)

    @property
    def _has_bands(self) -> bool:
        """Says whether a TIFF is read by tifffile: OpenCV would drop or change its values."""
        return self.tiff is not None and not self.tiff.is_photograph

    def _stored(self, pixels: PixelFormat) -> Array:
        """Decodes as the file's format wants it: with its own channels, or as RGB bytes."""
        in_colour = pixels.as_bytes and pixels.channels in (1, 3)
        if self.kind == "JPEG":
            return jpeg.decode(self.data, self.header, self.name)
        if self.kind == "HEIC":
            return heic.decode(self.data, self.name, self.frame or 0)
        if self.kind == "PNM":
            return pnm.decode(self.data, self.name, scaled=pixels.as_bytes)
        if self.kind == "BMP" and not bmp.is_run_length(self.data):
            return bmp.decode(self.data, self.name)
        if self.tiff is not None:
            return self._of_tiff(self.tiff, pixels, in_colour)
        # Grey files too: as colours their values are the same three times.
        # (OpenCV refuses colours of a bare JPEG 2000 codestream in grey.)
        grey_codestream = self.kind == "JPEG 2000" and self.header.components == 1
        return self._decoded(in_colour and self.header.bits <= 8 and not grey_codestream)

    def _of_tiff(self, tags: TiffHeader, pixels: PixelFormat, in_colour: bool) -> Array:
        if self._has_bands and tags.pages > 1 and in_colour:
            self._tell_of_pages(tags.pages, pixels)
        if self._has_bands or not (in_colour or tags.is_exact):
            return self._bands()
        in_colour = in_colour and tags.is_unsigned and tags.bits <= 8
        try:
            return self._decoded(in_colour)
        except ImageError as exc:
            if not tags.is_plain:
                raise ImageError(
                    f"{self.name} is a TIFF of a kind that isn't read ({tags.kind}); save it as "
                    "RGB of 8 bits, uncompressed or with LZW, or as PNG"
                ) from exc
        return self._bands()

    def _bands(self) -> Array:
        """Lets tifffile decode, which turns nothing; OpenCV turns TIFFs by itself."""
        bands = tiff.read_bands(self.data, self.name, self.frame)
        return upright(bands, self.header.orientation)

    def _tell_of_pages(self, pages: int, pixels: PixelFormat) -> None:
        """Refuses grey pages that can't be colours, and warns where they are taken for these."""
        several = f"{self.name} has {pages} grey pages"
        advice = "name one by its number from 0, as FILE#0 or Frame(..., 0)"
        if pages not in (3, 4):
            raise ImageError(
                f"{several}, as bands of one image [{self.height}, {self.width}, {pages}]; this "
                f"model takes {pixels.wanted}: {advice}"
            )
        warnings.warn(
            f"{several}, which are read as the red, green and blue of one image; {advice}, if they "
            "are images of their own",
            ImageWarning,
            stacklevel=2,
        )

    def _decoded(self, in_colour: bool) -> Array:
        """Lets OpenCV decode, as RGB bytes or with the file's own channels and type."""
        flags = cv2.IMREAD_COLOR_RGB if in_colour else cv2.IMREAD_UNCHANGED
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # but it turns TIFFs whatever the flags say
        if self.header.frames > 1 and self.kind != "TIFF":
            image = self._frame(self.frame or 0)
            in_colour = False
        elif self.frame is None:
            image = self._read(lambda data: cv2.imdecode(data, flags))
        else:
            index = self.frame
            image = self._read(lambda data: _page(data, flags, index))
        if in_colour or image.ndim == 2 or image.shape[2] not in (3, 4):
            return image
        return image[:, :, [2, 1, 0, 3][: image.shape[2]]]

    def _frame(self, index: int) -> Array:
        """Decodes a frame of an animation with all that lies under it, as BGR or BGRA."""

        def read(data: Array) -> Array | None:
            done, animation = cv2.imdecodeanimation(data, start=index, count=1)
            return cast("Array", animation.frames[0]) if done and len(animation.frames) else None

        return self._read(read)

    def _in_range(self, image: Array) -> Array:
        """Brings values of 16 bits of which a file says that fewer are used to all of them."""
        used = self.header.significant
        # Writers that scale values up themselves, as PNG asks for, state the same.
        if 8 < used < 16 and int(image.max()) < 1 << used:
            return image << (16 - used)
        return image

    def _in_srgb(self, image: Array) -> Array:
        """Makes sRGB of the colours, as the file's profile says; alpha stays."""
        profile = self.header.profile
        if self.kind == "JPEG" and self.header.components == 4:
            made = to_srgb(image, profile, self.name)
            return jpeg.rgb_of_cmyk(image) if made is image else made
        if not profile:
            return image
        if self.tiff is not None and self.tiff.photometric == tiff.CMYK:
            warnings.warn(  # OpenCV has made RGB of the inks
                f"{self.name} has a colour profile that isn't used, as it is a CMYK TIFF; save it "
                "as RGB, or as a CMYK JPEG",
                ImageWarning,
                stacklevel=2,
            )
            return image
        planes = image.reshape(*image.shape[:2], -1)
        # A grey file that was read as colours has its grey three times.
        count = 1 if planes.shape[2] < 3 or is_grey(profile) else 3
        colours = to_srgb(np.ascontiguousarray(planes[:, :, :count]), profile, self.name)
        if planes.shape[2] == count:
            return colours
        copies = [colours] * (3 // count if planes.shape[2] >= 3 else 1)
        return np.concatenate([*copies, planes[:, :, len(copies) * count :]], 2)

    def _cause(self) -> str:
        """Says what is to be told where OpenCV gives no image, and no reason."""
        side = png.MOST_SIDE if self.kind == "PNG" else MOST_SIDE
        width, height = self.header.width, self.header.height
        if max(width, height) > side or width * height > MOST_DECODED:
            return (
                f"{self.name} has {width} x {height} pixels, and OpenCV "
                f"decodes {self.kind} files up to {side} each way and {MOST_DECODED} in all; cut "
                "it into parts"
            )
        if self.kind == "AVIF" and not cv2.haveImageWriter(".avif"):
            return f"{self.name} is an AVIF, which this build of OpenCV doesn't read; convert it"
        return (
            f"{self.name} is a {self.kind} that can't be decoded: its pixels are damaged, or of a "
            "kind that OpenCV doesn't read; get it again, or save it as PNG"
        )

    def _read(self, decoder: Callable[[Array], Any]) -> Array:
        with quiet_opencv():
            try:
                image = cast("Array | None", decoder(np.frombuffer(self.data, np.uint8)))
            except cv2.error as exc:
                raise ImageError(self._cause()) from exc
        if image is None or image.size == 0:
            raise ImageError(self._cause())
        return image


def _page(data: Array, flags: int, index: int) -> Array | None:
    done, pages = cv2.imdecodemulti(data, flags, range=(index, index + 1))
    return cast("Array", pages[0]) if done and len(pages) else None


def read_encoded(
    stream: BinaryIO, name: str, max_pixels: int | None, frame: int | None = None
) -> Encoded:
    """Reads an image file whole, unless its first bytes refuse it.

    Args:
        stream: of the file.
        name: what errors call it.
        max_pixels: most that it may have; None for no limit.
        frame: which of its images; None for the first.

    Raises:
        ImageError: empty, not an image, too large, truncated, or without that frame.

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
    data = stream.read(BEGINNING)
    if not data:
        raise ImageError(f"{name} is empty; an image ({FORMATS}) is wanted")
    kind = format_of(data)
    if kind is None:
        raise ImageError(f"{name} is not an image that sigcam reads; convert it to {FORMATS}")
    is_all = len(data) < BEGINNING
    found = read_header(kind, data, name)
    if found.width and not is_all:  # refused without reading it all
        _check_size(found, name, max_pixels)
    if not is_all:
        stream.seek(0)  # reading all again is a copy less than adding to the beginning
        data = stream.read()
        found = read_header(kind, data, name)
    found, tags = _of_frame(kind, found, data, name, frame)
    problem = problem_of(kind, data, frame or 0)
    word = "truncated" if "end" in problem or "outside" in problem else "damaged"
    if found.width < 1 or found.height < 1:
        why = f"{word}, {problem}" if problem else "damaged or truncated"
        raise ImageError(f"{name} is a {kind} without a readable size: {why}; get it again")
    _check_size(found, name, max_pixels)
    if problem:
        raise ImageError(f"{name} is a {word} {kind}: {problem}; get it again")
    return Encoded(data, kind, name, found, frame, tags)


def _of_frame(
    kind: str, found: Header, data: bytes, name: str, frame: int | None
) -> tuple[Header, TiffHeader | None]:
    """Returns the header of the image that is asked for, and the tags of a TIFF."""
    tags = tiff.tiff_header(data, frame) if kind == "TIFF" else None
    if tags is not None and tags.is_raw:
        raise ImageError(
            f"{name} is a camera's raw file (DNG): what can be read of it is a preview or the "
            "sensor's own values; develop it to JPEG or TIFF"
        )
    what = "pages" if kind == "TIFF" else "frames"
    if frame is not None:
        if frame >= found.frames:
            have = f"one {kind} image" if found.frames == 1 else f"{found.frames} {what}"
            raise ImageError(f"{name} has {have}, counted from 0; there is no #{frame}")
        return (tiff.header(data, frame) if tags is not None else found), tags
    if found.frames > 1 and (tags is None or tags.is_photograph):
        warnings.warn(
            f"{name} has {found.frames} {what}, of which the first is read; name another one "
            "by its number from 0, as FILE#1 or Frame(..., 1)",
            ImageWarning,
            stacklevel=2,
        )
    return found, tags


def _check_size(found: Header, name: str, max_pixels: int | None) -> None:
    width, height = found.upright
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than max_pixels = {max_pixels}; "
            "scale it down or raise max_pixels"
        )


def limit_opencv() -> None:
    """Keeps OpenCV, which reads the images, within what this process may use.

    Example:
        >>> limit_opencv()
    """
    limit = thread_limit()
    if limit is not None and cv2.getNumThreads() > limit:
        cv2.setNumThreads(limit)


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
