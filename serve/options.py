"""What a server is allowed to do: limits, batching and timeouts, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigcam.core.annotations import check_fields
from sigcam.core.arguments import real_number, whole_number
from sigcam.core.errors import UsageError

__all__ = ["MOST_TOGETHER", "ImageFormat", "ServeOptions"]

ImageFormat = Literal[
    "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG 2000", "PNM", "NPY"
]

MOST_TOGETHER = 8
"""Most images in one run where nothing else is asked for, and where it pays."""

_AT_LEAST_ONE = (
    "batch_size", "parallel_runs", "queue_images", "request_images", "request_bytes", "max_pixels",
    "max_classes", "max_passes", "response_bytes",
)  # fmt: skip
_SECONDS = ("request_timeout", "body_timeout", "drain_delay", "drain_timeout")
_LONGEST = 24 * 3600.0


@dataclass(frozen=True)
class ServeOptions:
    """Limits and habits of a server. Counts are for each process and, where it says so, model.

    Attributes:
        batch_size: most images in one run of a model's backend. None: 8, and 1 where a run has a
            single processor, on which images one by one are as fast and none waits for others.
        batch_delay: most microseconds that the first image of a batch waits for others. 0: what
            is there when the backend is free makes a batch, which costs nobody any time.
        parallel_runs: runs of a model's backend at the same time, which share the processors. None:
            with ONNX Runtime on processors two at least, and one for every four of them; else one.
        queue_images: most images of a model that wait or are in work. A request that comes when
            so many are there is refused with status 429, and so are those after it, until fewer
            are there (`serve.room`). None: 40; more where five times what is run at the same time,
            or one request, is more.
        request_images: most images in a request.
        request_bytes: most bytes of a request's body.
        max_pixels: most pixels of an encoded image, by its header, before it is decoded.
        max_classes: most classes that maps are made of for an image.
        max_passes: most runs of an image through the network that a request's method may take.
        response_bytes: most bytes of the maps in an answer, before they are compressed.
        request_timeout: seconds after which a request is given up, and the longest that its
            parameter `timeout` may ask for.
        body_timeout: seconds in which a request's body must arrive.
        drain_delay: seconds that a server which was told to end goes on as before, but for being
            no longer ready, so that load balancers have time to notice.
        drain_timeout: seconds that it then waits for the requests that are running.
        niceness: 0 to 19, on Linux: how much the threads that run models leave to the others, so
            that requests are let in, refused and answered at once under load. Other processes on
            the same processors come first too, where no control group divides them.
        image_formats: formats of encoded images that are read. Each decoder is code that
            strangers' bytes go through, so the usual three are the default.
        model_control: whether clients may load and unload the models of a folder.

    Raises:
        UsageError: a value of another type or out of range, or a queue that is shorter than a
            batch or a request.

    Example:
        >>> ServeOptions(batch_size=16).most_together
        16
        >>> ServeOptions(batch_size=8, queue_images=4, request_images=4)
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: queue_images must be at least batch_size = 8, got 4
    """

    batch_size: int | None = None
    batch_delay: int = 0
    parallel_runs: int | None = None
    queue_images: int | None = None
    request_images: int = 16
    request_bytes: int = 32 << 20
    max_pixels: int = 25_000_000
    max_classes: int = 100
    max_passes: int = 64
    response_bytes: int = 256 << 20
    request_timeout: float = 60.0
    body_timeout: float = 30.0
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    niceness: int = 10
    image_formats: tuple[ImageFormat, ...] = ("JPEG", "PNG", "WebP")
    model_control: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name in _AT_LEAST_ONE:
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 1)
        whole_number(self.batch_delay, "batch_delay", 0)
        whole_number(self.niceness, "niceness", 0, 19)
        for name in _SECONDS:
            real_number(getattr(self, name), name, 0, _LONGEST)
        for name in ("request_timeout", "body_timeout"):
            real_number(getattr(self, name), name, 0, _LONGEST, above=True)
        for name in ("batch_size", "request_images"):
            least = getattr(self, name) or 1
            if self.queue_images is not None and self.queue_images < least:
                raise UsageError(
                    f"queue_images must be at least {name} = {least}, got {self.queue_images}"
                )
        if not self.image_formats:
            raise UsageError("image_formats must name at least one format")

    @property
    def most_together(self) -> int:
        """Returns the most images that a run may have, whatever it runs on."""
        return self.batch_size or MOST_TOGETHER
