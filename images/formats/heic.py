"""HEIC, the photographs of phones: decoded by the package pillow-heif (extra `heic`)."""

from __future__ import annotations

import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.types import Array


def decode(data: bytes, name: str, frame: int = 0) -> Array:
    """Decodes to RGB, upright.

    Args:
        data: of the file.
        name: what errors call it.
        frame: which of its images.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImageError: the package is missing, or the file is damaged.

    Example:
        image = decode(Path("IMG_0001.HEIC").read_bytes(), "IMG_0001.HEIC")
    """
    try:
        import pillow_heif
    except ImportError as exc:
        raise ImageError(
            f"{name} is a HEIC, which needs the package pillow-heif: "
            'pip install "sigcam[heic]", or convert it to JPEG'
        ) from exc
    try:
        file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
        image = np.asarray(file[frame])
    except Exception as exc:  # libheif's errors come as many kinds
        raise ImageError(
            f"{name} is a HEIC that can't be decoded ({exc}); get it again, or convert it to JPEG"
        ) from exc
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, 2)
    return np.ascontiguousarray(image[:, :, :3])
