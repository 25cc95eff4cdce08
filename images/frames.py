"""One of several images in a file: a frame of an animation, or a page of a TIFF."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sigcam.core.errors import UsageError

_NUMBERED = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)


@dataclass(frozen=True)
class Frame:
    """Names a frame of an animated GIF, WebP, PNG or AVIF file, or a page of a TIFF.

    A path may say the same with "#": "clip.gif#2" is Frame("clip.gif", 2). A file that is
    really called so comes first.

    Attributes:
        image: the path of the file, or its bytes.
        index: which one, from 0.

    Example:
        >>> Frame("clip.gif", 2).name
        'clip.gif#2'
    """

    image: str | os.PathLike[str] | bytes
    index: int

    def __post_init__(self) -> None:
        if not isinstance(self.image, (str, os.PathLike, bytes)):
            raise UsageError(
                f"a Frame is of a path or of bytes, got {type(self.image).__name__}; index an "
                "array itself"
            )
        if isinstance(self.index, bool) or not isinstance(self.index, int) or self.index < 0:
            raise UsageError(f"a frame's index is a whole number from 0, got {self.index!r}")

    @property
    def name(self) -> str | None:
        """Returns the path with "#" and the index; None for bytes."""
        if isinstance(self.image, bytes):
            return None
        return f"{os.fspath(self.image)}#{self.index}"


def frame_of(path: Path) -> Frame | None:
    """Returns what a path with "#" and a number names; None where it is a file's own name.

    Args:
        path: such as clip.gif#2.

    Raises:
        OSError: the path can't be looked up.

    Example:
        >>> frame_of(Path("missing.gif#2")) is None
        True
    """
    found = _NUMBERED.fullmatch(str(path))
    if found is None or path.exists() or not Path(found[1]).is_file():
        return None
    return Frame(found[1], int(found[2]))
