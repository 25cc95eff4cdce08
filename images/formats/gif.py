"""GIF: its size and how many frames it has."""

from __future__ import annotations

from sigcam.images.formats.header import Header


def header(data: bytes) -> Header:
    """Reads size and number of frames.

    Args:
        data: of the file, or its beginning; frames count as far as it goes.

    Example:
        >>> header(b"GIF89a" + bytes((6, 0, 4, 0, 0, 0, 0)) + b";").upright
        (6, 4)
    """
    if len(data) < 13:
        return Header()
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    frames, at = 0, 13 + _palette(data[10])
    while at < len(data):
        if data[at] == 0x21:  # an extension: a label, then blocks
            at = _after_blocks(data, at + 2)
        elif data[at] == 0x2C and at + 10 < len(data):  # an image: a header, a palette, blocks
            frames += 1
            at = _after_blocks(data, at + 11 + _palette(data[at + 9]))
        else:
            break
    return Header(width, height, frames=max(1, frames), bits=8, components=3)


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
