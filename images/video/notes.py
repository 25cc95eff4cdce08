"""What both readers of videos say in the same words: of their frames, and why there are none."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from sigcam.images.video.frames import Shape
from sigcam.images.video.header import Header

_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics in ITU-T H.273
_BT2020 = 9  # colour primaries there


def plausible_rate(fps: float | Fraction | None) -> float | None:
    """Returns frames a second, or None for what no camera has.

    Browsers' recordings claim 1000, the clock that their times count in.

    Example:
        >>> plausible_rate(29.97), plausible_rate(1000.0), plausible_rate(None)
        (29.97, None, None)
    """
    if fps is None or not math.isfinite(fps) or not 0 < fps < 1000:
        return None
    return float(fps)


def silence(timeout: float) -> str:
    """Says that an address sends nothing any more.

    Example:
        >>> silence(10)
        'it has sent nothing for 10 s'
    """
    return f"it has sent nothing for {timeout:g} s"


def size_note(number: int, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """Says that frames change their size, (width, height), midway.

    Example:
        >>> size_note(7, (64, 48), (96, 80))
        'its size changes at frame 7, from 64 x 48 to 96 x 80; what follows is scaled back'
    """
    return (
        f"its size changes at frame {number}, from {before[0]} x {before[1]} to {after[0]} x "
        f"{after[1]}; what follows is scaled back"
    )


def colour_note(primaries: int | None, transfer: int | None) -> str | None:
    """Says that colours are brought to the ordinary range; None where they are ordinary.

    Args:
        primaries: number of the colour primaries in ITU-T H.273; None where unknown.
        transfer: number of the transfer characteristics there, likewise.

    Example:
        >>> colour_note(9, 18)[:15], colour_note(1, 1)
        ('it is HDR (HLG)', None)
    """
    if transfer in _HDR:
        kind = f"it is HDR ({_HDR[transfer]})"
    elif primaries == _BT2020:
        kind = "it has the wide colours of BT.2020"
    else:
        return None
    return (
        f"{kind}; FFmpeg brings its colours to those of ordinary videos, which clips some and "
        "takes seconds before the first frame"
    )


def no_video(target: str) -> str:
    """Says that a file has no video in it.

    Example:
        >>> no_video("song.mp4")
        'song.mp4 has no video, only sound or other data; name a file with frames'
    """
    return f"{target} has no video, only sound or other data; name a file with frames"


def too_large(name: str, width: int, height: int, most: int) -> str:
    """Says that frames have more pixels than `max_pixels`.

    Example:
        >>> too_large("clip.mp4", 640, 480, 100)[:41]
        'clip.mp4 has frames of 640 x 480 pixels, '
    """
    return (
        f"{name} has frames of {width} x {height} pixels, more than max_pixels = {most}; scale it "
        "down or raise max_pixels"
    )


def damage(header: Header | None) -> str:
    """Says what is wrong with a file that can't be read, as far as its header tells.

    Example:
        >>> damage(Header("mp4", 100, 400))
        ': it is truncated, its header promises 400 bytes, and it has 100; get it again'
    """
    if header is not None and header.size == 0:
        return ": the file is empty; get it again"
    if header is not None and header.cut is not None:
        return f": it is truncated, {header.cut}; get it again"
    if header is not None and not header.indexed:
        return ": its index (moov) is missing, as of a recording that was cut off; get it again"
    return (
        ", or has no frames: damaged, or of another format; get it again, or convert it to MP4, "
        "AVI, MKV or WebM"
    )


def shape_notes(shape: Shape, width: int, height: int) -> list[str]:
    """Says what the user should know of how frames were brought into their shape.

    Example:
        >>> shape_notes(Shape(aspect=Fraction(4, 3)), 720, 576)
        ['its pixels are 4:3 of width to height; frames are enlarged to 960 x 576 square ones']
        >>> shape_notes(Shape(), 720, 576)
        []
    """
    upright = Shape(aspect=shape.aspect)
    if upright.size(width, height) == (width, height):
        return []
    new_width, new_height = shape.size(width, height)
    ratio = f"{shape.aspect.numerator}:{shape.aspect.denominator}"
    return [
        f"its pixels are {ratio} of width to height; frames are enlarged to {new_width} x "
        f"{new_height} square ones"
    ]


def without_password(address: str) -> str:
    """Returns an address as it may be shown and logged.

    Example:
        >>> without_password("rtsp://me:secret@door:554/1"), without_password("clip.mp4")
        ('rtsp://me:***@door:554/1', 'clip.mp4')
    """
    return re.sub(r"^(\w+://[^/:@]*):[^/]*@", r"\1:***@", address)
