"""What `sigcam explain` is asked, and how its results are told: lines, a bar, the rate."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sigcam.cli.common import echo

if TYPE_CHECKING:
    from sigcam.core.threads import Stopwatch
    from sigcam.runtime.explanation import Explanation


T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is asked of every image, and how results are told.

    Attributes:
        classes: those named; None for the most probable ones.
        top_k: how many of these.
        method: None for the artifact's own.
        readers: threads that read images.
        as_json: whether results are JSON lines.
        verbose: whether to tell the rate of images.
    """

    classes: list[str] | None
    top_k: int
    method: str | None
    readers: int
    as_json: bool
    verbose: bool


def default_readers() -> int:
    """Half of the cores, at most 8: the backend needs the others."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


class Meter:
    """A bar over all images, which counts passes where an image takes several."""

    def __init__(self, images: int, passes: int) -> None:
        from tqdm import tqdm

        self._passes = passes
        self._done = 0
        total = images * passes
        # Only for a person who waits: never in a log file, never for a single step.
        hidden = total < 2 or not sys.stderr.isatty()
        unit = "image" if passes == 1 else "pass"
        self._bar = tqdm(total=total, unit=unit, disable=hidden, file=sys.stderr)

    def report(self, done: int, total: int) -> None:
        """Called after each run of the backend, with the passes of the image at hand."""
        if total > 1:
            self._show(self._done * self._passes + done)

    def count(self, results: Iterable[T]) -> Iterator[T]:
        """The results as they come, each an image done."""
        with self._bar:
            for result in results:
                self._done += 1
                self._show(self._done * self._passes)
                yield result

    def _show(self, steps: int) -> None:
        self._bar.update(steps - self._bar.n)


def print_results(
    name: str, explanations: list[Explanation], *, as_json: bool, **more: object
) -> None:
    """One JSON object, or a line for each class.

    Args:
        name: of the image.
        explanations: of the image.
        as_json: which of both.
        more: further entries of the JSON object.
    """
    if as_json:
        record = {"image": name, **more, "explanations": [e.to_dict() for e in explanations]}
        echo(json.dumps(record, ensure_ascii=False))
        return
    for explanation in explanations:
        parts = [name, explanation.label, f"probability {explanation.probability:.3f}"]
        if explanation.evidence is not None:
            parts.append(f"evidence {explanation.evidence:.3f}")
        boxes = explanation.boxes()
        if boxes:
            box = boxes[0]
            parts.append(f"box {box.x0},{box.y0},{box.x1},{box.y1}")
        if not explanation.valid:
            parts.append("no evidence in the image (the map is empty)")
        echo("\t".join(parts))


class Rate:
    """Images a second, and how much of the time the backend ran."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._start = time.perf_counter()

    def text(self, count: int, unit: str) -> str:
        """What to say after `count` images or frames."""
        seconds = time.perf_counter() - self._start
        return (
            f"{count} {unit} in {seconds:.1f} s, {count / seconds:.1f} a second; "
            f"the backend ran {self._stopwatch.seconds / seconds:.0%} of the time"
        )
