"""What the header of an image file says, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass

TRANSPOSED = (5, 6, 7, 8)
"""The orientations that change rows and columns."""


@dataclass(frozen=True)
class Header:
    """What a file says about its image before any pixel is decoded.

    Attributes:
        width, height: as stored; 0 where the header doesn't reach that far.
        orientation: as in EXIF, 1 to 8: how the stored image becomes upright.
        profile: the ICC colour profile; empty where there is none.
        frames: images in the file: those of an animation, or a TIFF's pages.
        bits: of a stored value; 0 where it isn't known.
        significant: how many of these bits are used, where the file states it; 0 otherwise.
        components: values of a pixel; 0 where it isn't known.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    profile: bytes = b""
    frames: int = 1
    bits: int = 0
    significant: int = 0
    components: int = 0

    @property
    def upright(self) -> tuple[int, int]:
        """Returns width and height of the upright image.

        Example:
            >>> Header(6, 4, orientation=6).upright
            (4, 6)
        """
        if self.orientation in TRANSPOSED:
            return self.height, self.width
        return self.width, self.height
