"""Which way up an image is, by the metadata that its file carries."""

from __future__ import annotations

import re

from sigcam.images.formats.tiff import ORIENTATION, directories

_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")


def exif_orientation(data: bytes) -> int:
    """Returns the orientation that EXIF metadata state, 1 to 8; 0 where they don't.

    Args:
        data: the metadata, which have the form of a TIFF.

    Example:
        >>> exif_orientation(b"")
        0
    """
    try:
        first = directories(data.removeprefix(b"Exif\0\0"), most=1)[0]
    except (IndexError, ValueError):
        return 0
    found = first.get(ORIENTATION, (0,))[0]
    return found if 1 <= found <= 8 else 0


def xmp_orientation(data: bytes) -> int:
    """Returns the orientation that XMP metadata state, 1 to 8; 0 where they don't.

    Args:
        data: the metadata, XML.

    Example:
        >>> xmp_orientation(b'<rdf:Description tiff:Orientation="6"/>')
        6
    """
    found = _XMP.search(data)
    return int(found[1]) if found else 0
