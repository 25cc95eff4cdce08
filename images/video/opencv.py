"""Reading videos and cameras through OpenCV."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from sigcam.core.errors import VideoError
from sigcam.core.types import Array
from sigcam.images.decode import quiet_opencv
from sigcam.images.video.frames import Clock, Frame, Shape, Wanted
from sigcam.images.video.header import CODEC_NAMES, Header, codec_name
from sigcam.images.video.notes import (
    colour_note,
    damage,
    no_video,
    plausible_rate,
    shape_notes,
    silence,
    size_note,
)

READER = f"OpenCV {cv2.__version__}"
"""The library and its version."""

_QUIET = "-8"  # FFmpeg's AV_LOG_QUIET

_TRIES = 8  # frames after damage that may be lost, before it is the end
# Decoded by OpenCV's wheels only on graphics cards, if at all.
_NOT_DECODED = frozenset(("AV1", "H.266", "EVC", "ProRes RAW"))


class OpenCVSource:
    """Reads the frames of a file, an address or a camera. See `frames.Source`."""

    def __init__(
        self,
        target: str | int,
        header: Header | None = None,
        timeout: float | None = None,
        camera: bool = False,
    ) -> None:
        """Opens a video.

        Args:
            target: a path, an address, or the number or device of a camera.
            header: what the file says of itself; None for what isn't a file.
            timeout: seconds after which an address that is silent counts as gone.
            camera: whether it is a camera.

        Raises:
            VideoError: it can't be opened, or has no frames that OpenCV decodes.
        """
        self.reader = READER
        if header is not None and header.has_video is False and header.indexed:
            raise VideoError(no_video(str(target)))  # OpenCV takes a cover for a video
        quiet_ffmpeg()
        kind = cv2.CAP_ANY if camera else cv2.CAP_FFMPEG
        self._camera, self._timeout, self._is_file = camera, timeout, header is not None
        limits: list[int] = []
        if timeout is not None:
            milliseconds = round(timeout * 1000)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
            limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        with quiet_opencv():
            self._capture = cv2.VideoCapture(target, kind, limits)
            if not self._capture.isOpened():
                raise VideoError(_why_not_opened(target, header, camera))
            turned = None if header is None else header.matrix
            if turned is not None:  # OpenCV knows the angles and not the mirrors
                self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
            self._grabbed = self._capture.grab()
        try:
            if not self._grabbed:
                raise VideoError(self._why_no_frames(target, header))
            self._describe(turned, header)
        except BaseException:
            self.close()
            raise

    def _describe(
        self, turned: tuple[float, float, float, float] | None, header: Header | None
    ) -> None:
        found, first = self._capture.retrieve()
        if not found:
            raise VideoError("the first frame can't be decoded")
        self._first: Array | None = first
        self._coded = height, width = first.shape[:2]
        aspect = Fraction(1)
        numbers = [self._capture.get(one) for one in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN)]
        if min(numbers) > 0:
            aspect = Fraction(round(numbers[0]), round(numbers[1]))
        self._shape = Shape.of_matrix(turned or (1, 0, 0, 1), aspect)
        if turned is None and self._capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90:
            self._shape = Shape(aspect=1 / aspect)  # OpenCV has turned it, pixels and all
        self.width, self.height = self._shape.size(width, height)
        self.notes = shape_notes(self._shape, width, height)
        note = None if header is None else colour_note(*(header.colours or (None, None)))
        if note is not None:
            self.notes.append(note)
        self.fps = plausible_rate(self._capture.get(cv2.CAP_PROP_FPS))
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.promised = int(count) if math.isfinite(count) and 1 <= count < 1e9 else None
        self.exact = header is not None and header.kind in ("mp4", "avi")
        self._changed = False
        self.count = self.damaged = 0
        self.ended_by: str | None = None

    def frames(self, wanted: Wanted) -> Iterator[Frame]:
        """Yields the wanted frames from the first on; can be called once."""
        begun = time.monotonic()
        clock, before = Clock(self.fps), -math.inf
        while self._grabbed:
            number, self.count = self.count, self.count + 1
            shown = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # For a frame without a time, OpenCV repeats another one's.
            seconds = clock.seconds(shown if shown > before else None)
            before = max(before, shown)
            if wanted(number, seconds):
                image = self._image(number)
                if image is None:
                    self.damaged += 1
                else:
                    yield Frame(number, seconds, image)
                del image
            self._first = None
            begun = time.monotonic()
            self._grabbed = self._grab()
        if self._camera:
            self.ended_by = "it gives no more frames; check that it is plugged in"
        elif self._timeout is not None and time.monotonic() - begun > 0.9 * self._timeout:
            self.ended_by = silence(self._timeout)

    def _grab(self) -> bool:
        """Decodes the next frame; of a file, what comes after damage too."""
        with quiet_opencv():
            if self._capture.grab():
                return True
            for _ in range(_TRIES if self._is_file else 0):
                if self._capture.grab():
                    self.damaged += 1
                    return True
        return False

    def _image(self, number: int) -> Array | None:
        image = self._first
        if image is None:  # a camera's frame can be taken once
            with quiet_opencv():
                found, image = self._capture.retrieve()
            if not found or image is None:
                return None
        height, width = self._coded
        if image.shape[:2] != self._coded:  # FFmpeg's are scaled by OpenCV 5
            if not self._changed:
                self._changed = True
                self.notes.append(size_note(number, (width, height), image.shape[1::-1]))
            image = cv2.resize(image, (width, height))
        return self._shape.of(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))

    def close(self) -> None:
        """Frees the file; a second call does nothing."""
        self._capture.release()

    def _why_no_frames(self, target: str | int, header: Header | None) -> str:
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        codec = codec_name(code.to_bytes(4, "little").decode("latin-1"))
        if codec in _NOT_DECODED:
            return _other_codec(target, codec)
        if self._camera:
            return f"camera:{target} is there and gives no frames; another program may have it open"
        return _damaged(target, header)


def quiet_ffmpeg() -> None:
    """Keeps FFmpeg's own words off standard error; whoever wants them sets the variable."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _QUIET)


def _why_not_opened(target: str | int, header: Header | None, camera: bool) -> str:
    if camera:
        return (
            f"there is no camera:{target} that OpenCV can open; check that it is plugged in, that "
            "no other program uses it, and that you may read its device"
        )
    if header is None:
        return f"OpenCV can't open {target}; check the address, and that it is on the air"
    names = frozenset(CODEC_NAMES.values())
    if header.codec and (header.codec in _NOT_DECODED or header.codec not in names):
        return _other_codec(target, header.codec)
    return _damaged(target, header)


def _other_codec(target: str | int, codec: str) -> str:
    name = Path(str(target)).stem
    return (
        f"{target} is encoded as {codec}, which OpenCV doesn't decode; install PyAV, which has "
        f'more decoders (pip install "sigcam[video]"), or convert it, as with: ffmpeg -i {target} '
        f"-c:v libx264 {name}-h264.mp4"
    )


def _damaged(target: str | int, header: Header | None) -> str:
    return f"{target} is no video that OpenCV can read{damage(header)}"
