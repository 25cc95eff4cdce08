"""A video's frames: which are wanted, at what time they are shown, and which way up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, TypeAlias

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array

Wanted: TypeAlias = Callable[[int, float], bool]
"""Says by a frame's number and its seconds whether it is wanted; called once for each frame."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: how many frames of the video come before it.
        seconds: when it is shown, counted from the video's first frame.
        image: uint8 [H, W, 3] RGB, upright, of square pixels.
    """

    number: int
    seconds: float
    image: Array


class Source(Protocol):
    """What reads the frames of an opened video.

    Attributes:
        reader: the library and its version.
        width, height: of the frames as they come, in pixels.
        fps: frames a second on average; None where the video doesn't say, or can't mean it.
        promised: number of frames that the video says it has, sometimes an estimate; or None.
        exact: whether `promised` was counted by whoever wrote the file.
        count: number of frames that were passed so far.
        damaged: number of pieces that could not be decoded so far.
        notes: what the user should know of the frames.
        ended_by: why reading failed; None while it didn't.
    """

    reader: str
    width: int
    height: int
    fps: float | None
    promised: int | None
    exact: bool
    count: int
    damaged: int
    notes: list[str]
    ended_by: str | None

    def frames(self, wanted: Wanted) -> Iterator[Frame]:
        """Yields the wanted frames from the first on; can be called once."""
        ...

    def close(self) -> None:
        """Frees the file; a second call does nothing."""
        ...


def every_nth(count: int) -> Wanted:
    """Wants every Nth frame from the first on.

    Example:
        >>> wanted = every_nth(3)
        >>> [number for number in range(7) if wanted(number, 0.0)]
        [0, 3, 6]
    """
    if count < 1:
        raise UsageError(f"every must be at least 1, got {count}")
    return lambda number, _: number % count == 0


def per_second(rate: float) -> Wanted:
    """Wants so many frames a second, by the times at which they are shown.

    In each stretch of 1 / rate seconds, the first frame is wanted; a video that has fewer frames
    than that gives all of them.

    Example:
        >>> wanted = per_second(2)
        >>> times = (0.0, 0.1, 0.45, 0.6, 0.7, 1.9, 2.0)
        >>> [seconds for number, seconds in enumerate(times) if wanted(number, seconds)]
        [0.0, 0.6, 1.9, 2.0]
    """
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"fps must be a number above 0, got {rate}")
    last = -1

    def wanted(_: int, seconds: float) -> bool:
        nonlocal last
        # Container times are rounded, to milliseconds in some: 0.333 is in the second third.
        stretch = math.floor(seconds * rate + 1e-3 * min(rate, 100))
        if stretch <= last:
            return False
        last = stretch
        return True

    return wanted


_LEAST = 1e-3  # seconds between two frames, where the container has none between them


@dataclass
class Clock:
    """Counts seconds from the first frame; no frame is earlier than the one before.

    Attributes:
        fps: by which a frame without a time of its own follows the one before; None for 25.
    """

    fps: float | None
    _first: float | None = None
    _last: float = field(default=-1.0)

    def seconds(self, time: float | None) -> float:
        """Returns a frame's seconds.

        Args:
            time: by the container, in seconds; None where it has none.

        Example:
            >>> clock = Clock(fps=10)
            >>> [clock.seconds(time) for time in (5.0, 5.5, None, 5.5)]
            [0.0, 0.5, 0.6, 0.601]
        """
        if self._first is None:
            self._first = 0.0 if time is None else time
            self._last = 0.0
            return 0.0
        if time is None:
            seconds = self._last + 1 / (self.fps or 25)
        else:
            seconds = max(time - self._first, self._last + _LEAST)
        self._last = round(seconds, 6)
        return self._last


@dataclass(frozen=True)
class Shape:
    """How decoded pixels become the image that a player shows.

    Attributes:
        transposed: whether rows become columns, which comes first.
        flip_x: whether it is then mirrored left to right.
        flip_y: whether it is then mirrored upside down.
        aspect: width of a pixel by its height, before all this.

    Example:
        >>> image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
        >>> Shape(transposed=True, flip_x=True).of(image)[:, :, 0].tolist()  # a quarter clockwise
        [[3, 0], [4, 1], [5, 2]]
    """

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False
    aspect: Fraction = Fraction(1)

    @classmethod
    def of_matrix(
        cls, matrix: tuple[float, float, float, float], aspect: Fraction = Fraction(1)
    ) -> Shape:
        """Reads a display matrix: a point (x, y) goes to (a x + c y, b x + d y).

        Angles between the quarters are taken for the nearest one.

        Args:
            matrix: a, b, c, d.
            aspect: width of a pixel by its height, before it is turned.

        Example:
            >>> Shape.of_matrix((0, 1, -1, 0)).transposed
            True
        """
        a, b, c, d = matrix
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0, aspect)
        return cls(False, a < 0, d < 0, aspect)

    @property
    def turns(self) -> bool:
        """Says whether pixels change their places at all."""
        return self.transposed or self.flip_x or self.flip_y

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height of what comes of frames of that size.

        Example:
            >>> Shape(transposed=True, aspect=Fraction(4, 3)).size(720, 576)
            (576, 960)
        """
        width, height = self._squared(width, height)
        return (height, width) if self.transposed else (width, height)

    def of(self, image: Array) -> Array:
        """Returns the image as it is shown, contiguous; of square pixels and upright, it itself."""
        height, width = image.shape[:2]
        squared = self._squared(width, height)
        if squared != (width, height):
            image = np.asarray(cv2.resize(image, squared, interpolation=cv2.INTER_LINEAR))
        if self.transposed:
            image = image.transpose(1, 0, 2)
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def _squared(self, width: int, height: int) -> tuple[int, int]:
        """Enlarges one side, so that nothing is lost."""
        if not Fraction(1, 20) <= self.aspect <= 20 or abs(self.aspect - 1) < Fraction(1, 200):
            return width, height  # nobody means that, or nobody sees it
        if self.aspect > 1:
            return round(width * self.aspect), height
        return width, round(height / self.aspect)
