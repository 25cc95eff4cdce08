"""From a path, encoded bytes or an array to the network's input, decoding no more than it needs.

A JPEG that is at least twice as large as the input is decoded at 1/2, 1/4 or 1/8 of its
size: at 1/8, 12 megapixels take 0.4 of the time and 1/64 of the memory. Its pixels are the
cells of the box average that `geometry.prepare` makes of a whole picture, but for the ringing of
a block's higher frequencies and for chroma, which isn't enlarged and averaged again. The
network's input differs by 0.2 levels of 255 on average on pictures with little detail in a
pixel, as large photographs are, and by 0.4 (at 1/8) to 0.7 levels (at 1/2) on small ones, where
one value in a hundred differs by more than 2 to 5. EfficientNet-Lite0's predictions agree to 98.4
to 99.6% and its grids correlate to 0.9998 (pictures enlarged to 540 to 2,100 pixels).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.runtime.errors import ImageError
from sigcam.runtime.geometry import Placement, input_of, place, prepare
from sigcam.runtime.image import DEFAULT_MAX_PIXELS, PictureLike, from_array, open_image
from sigcam.runtime.spec import Geometry

Array = npt.NDArray[Any]
Source = Path | bytes


class Original:
    """A picture at its full size: at hand, or decoded when it is first asked for.

    Shared by the Explanations of a picture, from any thread.
    """

    def __init__(
        self,
        image: Array | None,
        source: Source = b"",
        shape: tuple[int, ...] = (),
        stamp: tuple[int, int] | None = None,
    ) -> None:
        """Keeps a picture or where it comes from.

        Args:
            image: uint8 [H, W, 3] RGB, upright; None to decode `source` later.
            source: absolute path or the bytes of a file, which was read before.
            shape: of the picture.
            stamp: length and time of change of the file.
        """
        self._image = image
        self._source = source
        self._shape = shape
        self._stamp = stamp
        self._lock = threading.Lock()

    @property
    def image(self) -> Array:
        """The picture, uint8 [H, W, 3] RGB, upright; decoded once.

        Raises:
            ImageError: its file is gone, or another one since it was read.
        """
        with self._lock:
            if self._image is None:
                self._image = self._decoded()
                self._source = b""
            return self._image

    def _decoded(self) -> Array:
        try:
            found = open_image(self._source, None)
        except ImageError as exc:
            raise ImageError(
                f"the picture was explained, but can't be shown: {exc}; keep the file until then, "
                "or pass its bytes"
            ) from exc
        image = found.decode()
        # Looked at after reading: what was read is then the file of that time.
        if _stamp(self._source) != self._stamp or image.shape != self._shape:
            raise ImageError(
                f"{found.name} has changed since it was explained, so it can't be shown with "
                "that map; explain it again"
            )
        return image

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that was read for the network.

    Attributes:
        tensor: the network's input, as `geometry.prepare` gives it.
        placement: where that lies in the picture.
        original: the picture.
    """

    tensor: Array
    placement: Placement
    original: Original


def read_input(
    source: PictureLike, geometry: Geometry, max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> Prepared:
    """Reads a picture and makes the network's input of it.

    Args:
        source: as for `read_image`.
        geometry: of the model.
        max_pixels: as for `read_image`.

    Raises:
        ImageError, UsageError: as `read_image`.
    """
    if isinstance(source, np.ndarray):
        return _whole(from_array(source), geometry)
    path = Path(source).absolute() if isinstance(source, (str, os.PathLike)) else None
    stamp = None if path is None else _stamp(path)
    found = open_image(source, max_pixels)
    placement = place(geometry, found.height, found.width)
    reduction = found.coarsest(placement.reduction)
    if reduction == 1:
        return _whole(found.decode(), geometry)
    image = found.decode_reduced(reduction)
    shape = (found.height, found.width, 3)
    if image.shape != (-(-shape[0] // reduction), -(-shape[1] // reduction), 3):
        # The header isn't what the decoder goes by, so the pixels decide.
        return _whole(found.decode(), geometry)
    tensor = input_of(image, placement, geometry, reduction=reduction)
    return Prepared(tensor, placement, Original(None, path or found.data, shape, stamp))


def _whole(image: Array, geometry: Geometry) -> Prepared:
    tensor, placement = prepare(image, geometry)
    return Prepared(tensor, placement, Original(image))


def _stamp(source: Source) -> tuple[int, int] | None:
    """Length and time of change of a file; None if there is none, or for bytes."""
    if isinstance(source, bytes):
        return None
    try:
        status = source.stat()
    except (OSError, ValueError):  # reading it says why
        return None
    return status.st_size, status.st_mtime_ns
