"""Room for images of a model: much for a burst of them, less while more come than can be run."""

from __future__ import annotations

from sigcam.serve.options import ServeOptions
from sigcam.serve.runs import Runs

__all__ = ["Room", "room_for"]

_SHORTEST = 40
"""On two processors the last of so many waits 0.3 s for EfficientNet-Lite0. At random times, at 80%
of what they bear, one request of a thousand found a queue of 24 full."""

_LASTING = 0.3
"""The share of the queue that is left while more comes than can be run."""


class Room:
    """Counts the images that wait or are in work, and says whether more may come.

    A queue takes up what comes in bursts; when more comes than can be run for long, it only lets
    everybody wait, and as long as it is. So once it was full it is shorter, until it has been
    worked off.

    Not for several threads at once: whoever asks holds a lock.

    Attributes:
        images: that are in.

    Example:
        >>> room = Room(5, 3)
        >>> [room.take(1) for _ in range(6)]
        [True, True, True, True, True, False]
        >>> room.give_back(2)
        >>> room.take(1), room.most  # three are there, and the queue was full
        (False, 3)
        >>> room.give_back(2)
        >>> room.take(4), room.most  # it has been worked off
        (True, 5)
    """

    def __init__(self, burst: int, lasting: int) -> None:
        """Begins empty.

        Args:
            burst: images that may be in.
            lasting: images that may be in once it was full, until half of them are.
        """
        self.images = 0
        self._burst, self._lasting = burst, min(burst, lasting)
        self._was_full = False

    @property
    def most(self) -> int:
        """Returns how many images may be in now."""
        return self._lasting if self._was_full else self._burst

    def take(self, images: int) -> bool:
        """Lets images in, all or none.

        Returns:
            Whether they are in.
        """
        if self.images + images <= self.most:
            self.images += images
            return True
        self._was_full = self._was_full or self.images >= self._burst
        return False

    def give_back(self, images: int) -> None:
        """Lets images go."""
        self.images -= images
        if self.images <= self._lasting // 2:
            self._was_full = False


def room_for(runs: Runs, options: ServeOptions) -> Room:
    """Returns the room for a model.

    That is five times what is run at the same time, and for as long as more comes than can be run
    twice as much, so that the images of the next runs are there when one ends.

    Args:
        runs: of the model.
        options: may ask for another size.

    Example:
        >>> room_for(Runs(parallel=2, images=1), ServeOptions()).most
        40
        >>> room_for(Runs(parallel=4, images=8), ServeOptions()).most
        160
    """
    together = runs.parallel * runs.images
    burst = options.queue_images or max(_SHORTEST, options.request_images, 5 * together)
    return Room(burst, max(round(_LASTING * burst), 2 * together))
