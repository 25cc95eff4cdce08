"""Text on images: any script that the fonts know, on a plate that makes it readable anywhere."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array

_PLATE = 0.65
"""Weight of the black plate behind a text: white letters keep a contrast of 6 on white."""

_LINE = 1.3
"""Height of a line, of the letters' size: room for accents above and descenders below."""

# A face keeps the glyphs that it has drawn, and nothing says that two threads may use one.
_lock = threading.Lock()
_faces: dict[str, Any] = {}


def check_font(font: str | Path | None) -> None:
    """Refuses a font that can't be used.

    Args:
        font: path of a TrueType or OpenType file; None for OpenCV's own.

    Raises:
        UsageError: no such file, not a font, or an OpenCV that reads none.

    Example:
        >>> check_font(None)
        >>> check_font("none.ttf")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: there is no font that can be read at none.ttf; ...
    """
    if font is None:
        return
    if not hasattr(cv2, "FontFace"):
        raise UsageError(
            f"OpenCV {cv2.__version__} reads no font files; leave font out, or update it: "
            "pip install 'opencv-python-headless>=5'"
        )
    with _lock:
        _face(font)


def _face(font: str | Path | None) -> Any:
    """Returns the opened font, which is kept; call it with the lock held."""
    name = "sans" if font is None else str(font)
    if name not in _faces:
        face = cv2.FontFace()
        if not (Path(name).is_file() or font is None) or not face.set(name):
            raise UsageError(
                f"there is no font that can be read at {name}; name a TrueType or OpenType file "
                "(.ttf, .otf), or leave font out for OpenCV's own"
            )
        _faces[name] = face
    return _faces[name]


def letters(text: str, size: int, font: str | Path | None = None) -> Array:
    """Draws one line of text.

    OpenCV 5 draws Latin, Greek, Cyrillic, Arabic, Hebrew, Chinese, Japanese and Korean with fonts
    of its own, and a question mark for what they lack: name a font for other scripts. OpenCV 4
    has ASCII only, so accents are taken off and all else becomes a question mark.

    Args:
        text: to draw; control characters (line breaks too) count as spaces.
        size: of the letters, in pixels.
        font: as for `check_font`.

    Returns:
        How much of each pixel is covered, uint8 [round(1.3 size), W].

    Example:
        >>> letters("chat", 20).shape[0]
        26
        >>> bool(letters("chat", 20).any())
        True
    """
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    if not hasattr(cv2, "FontFace"):
        return _ascii_letters(text, size)
    with _lock:
        face = _face(font)
        width = cv2.getTextSize((0, 0), text, (0, 0), face, size)[2] + 2
        covered = np.zeros((round(_LINE * size), width), np.uint8)
        # The range in which lines are wrapped is wider than the text: it stays one line.
        cv2.putText(covered, text, (0, size), (255,), face, size, wrap=(0, 2 * width))
    return covered


def _ascii_letters(text: str, size: int) -> Array:
    """Draws text with the fonts of OpenCV 4, which have no other letters than ASCII's."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = text.encode("ascii", "replace").decode("ascii")
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(size / 14))
    scale = cv2.getFontScaleFromHeight(font, max(1, round(0.7 * size)), thickness)
    width = cv2.getTextSize(text, font, scale, thickness)[0][0] + 2
    covered = np.zeros((round(_LINE * size), width), np.uint8)
    cv2.putText(covered, text, (0, size), font, scale, (255,), thickness, cv2.LINE_AA)
    return covered


def shortened(text: str, width: int, size: int, font: str | Path | None = None) -> str:
    """Cuts a text so that it is at most so many pixels wide; what was cut shows as an ellipsis.

    Args:
        text: one line.
        width: in pixels.
        size: as for `letters`.
        font: as for `check_font`.

    Returns:
        The text; empty where not even one letter fits.

    Example:
        >>> shortened("a very long name of a class", 120, 20)
        'a very long…'
    """
    mark = "…" if hasattr(cv2, "FontFace") else "..."
    if letters(text, size, font).shape[1] <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        cut = text[:middle].rstrip() + mark
        fits, too_long = (
            (middle, too_long) if letters(cut, size, font).shape[1] <= width else (fits, middle)
        )
    return text[:fits].rstrip() + mark if fits else ""


def text_size(height: int, width: int) -> int:
    """Returns the size of letters that fits an image, in pixels; at least 9, to be readable.

    Example:
        >>> text_size(100, 100), text_size(480, 640), text_size(6000, 8000)
        (9, 16, 200)
    """
    return max(9, round(min(height, width, 0.6 * max(height, width)) / 24))


def write_lines(
    image: Array,
    lines: Sequence[str],
    at: tuple[int, int],
    size: int,
    font: str | Path | None = None,
) -> None:
    """Writes lines of white text on a dark plate, into the image.

    Args:
        image: uint8 [H, W, 3] RGB or [H, W, 4] RGBA; changed.
        lines: one below the other. One that is too long is broken at its commas, and shortened
            if that isn't enough; those that don't fit below are left out.
        at: x and y of the plate's upper left corner.
        size: as for `letters`.
        font: as for `check_font`.

    Example:
        >>> image = np.full((60, 200, 3), 255, np.uint8)
        >>> write_lines(image, ["tabby cat"], (0, 0), 20)
        >>> int(image[0, 0, 0]), int(image[59, 199, 0])  # plate, image
        (89, 255)
    """
    x, y = at
    edge = max(2, size // 3)
    room = image.shape[1] - x - 2 * edge
    step = round(_LINE * size)
    count = max(0, (image.shape[0] - y - edge) // step)
    lines = [part for line in lines for part in _broken(line, room, size, font)]
    cut = [shortened(line, room, size, font) for line in lines[:count]]
    drawn = [letters(line, size, font) for line in cut if line]
    if not drawn:
        return
    height = len(drawn) * step + edge
    width = max(one.shape[1] for one in drawn) + 2 * edge
    blend(image[y : y + height, x : x + width], (0, 0, 0), _PLATE)
    for index, covered in enumerate(drawn):
        top = y + edge // 2 + index * step
        part = image[top : top + step, x + edge : x + edge + covered.shape[1]]
        blend(part, (255, 255, 255), covered[: part.shape[0], : part.shape[1]] / 255.0)


def _broken(line: str, width: int, size: int, font: str | Path | None) -> list[str]:
    """Breaks a line at its commas where it is too wide."""
    whole = letters(line, size, font).shape[1] <= width
    return [line] if whole else line.split(", ")


def blend(part: Array, colour: tuple[int, int, int], weight: Array | float) -> None:
    """Lays a colour over a part of an image, in place.

    Args:
        part: uint8 [H, W, 3] RGB or [H, W, 4] RGBA, whose last channel goes to 255 likewise.
        colour: red, green and blue, 0 to 255.
        weight: of the colour, 0 to 1: a number, or an array [H, W].

    Example:
        >>> part = np.zeros((1, 2, 3), np.uint8)
        >>> blend(part, (200, 100, 0), np.array([[0.0, 0.5]]))
        >>> part.tolist()
        [[[0, 0, 0], [100, 50, 0]]]
    """
    share = np.asarray(weight, np.float32)
    share = np.broadcast_to(share[..., None], (*part.shape[:2], 1))
    mixing = share
    if part.shape[2] == 4:
        # What lay below counts by its own opacity, or clear pixels would darken the letters.
        opacity = 255 * share + part[:, :, 3:] * (1 - share)
        mixing = np.divide(255 * share, opacity, out=np.zeros_like(share), where=opacity > 0)
        part[:, :, 3:] = np.rint(opacity).astype(np.uint8)
    below = part[:, :, :3]
    part[:, :, :3] = np.rint(below + (np.array(colour, np.float32) - below) * mixing).astype(
        np.uint8
    )
