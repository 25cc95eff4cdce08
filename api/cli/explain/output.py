"""What `sigcam explain` is asked, and how its results are told: lines, a bar, the rate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sigcam.cli.common import echo, echo_json, say
from sigcam.core.cpus import usable_cpus
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    from sigcam.core.threads import Stopwatch
    from sigcam.images.listing import LeftOut
    from sigcam.images.overlay import OverlayOptions
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
        method_options: numbers that the method is called with.
        min_probability: asks for every class of at least this probability; None for those
            named or counted.
        overlay: how maps are drawn; None where none are.
        shares_range: whether all maps are drawn with the range that they have together.
    """

    classes: list[str] | None
    top_k: int
    method: str | None
    readers: int
    as_json: bool
    verbose: bool
    method_options: Mapping[str, float] = field(default_factory=dict)
    min_probability: float | None = None
    overlay: OverlayOptions | None = None
    shares_range: bool = False

    @property
    def count(self) -> int:
        """Returns how many classes are named or counted."""
        return self.top_k if self.classes is None else len(self.classes)

    @property
    def question(self) -> dict[str, Any]:
        """Returns what is asked, as arguments of `Session.stream`."""
        return {
            "classes": self.classes,
            "top_k": self.top_k,
            "min_probability": self.min_probability,
            "method": self.method,
            "method_options": self.method_options,
        }


def default_readers() -> int:
    """Returns half of the usable cores, at most 8: the backend needs the others.

    Example:
        >>> 1 <= default_readers() <= 8
        True
    """
    return max(1, min(8, usable_cpus() // 2))


class Meter:
    """A bar over all images, which counts passes where an image takes several."""

    def __init__(self, images: int, passes: int) -> None:
        self._passes = passes
        self._done = 0
        total = images * passes
        unit = "image" if passes == 1 else "pass"
        # None leaves it to the terminal; a single step needs no bar.
        self._bar = Bar(total, unit=unit, shown=None if total > 1 else False)

    def report(self, done: int, total: int) -> None:
        """Shows the passes of the image at hand; called after each run of the backend."""
        if total > 1:
            self._bar.advance_to(self._done * self._passes + done)

    def count(self, results: Iterable[T]) -> Iterator[T]:
        """Yields the results as they come, and counts each as an image done."""
        with self._bar:
            for result in results:
                self._done += 1
                self._bar.advance_to(self._done * self._passes)
                yield result


def print_results(
    name: str,
    explanations: list[Explanation],
    written: Sequence[Path | None] = (),
    error: str | None = None,
    /,
    *,
    as_json: bool,
    **more: object,
) -> None:
    """Prints one JSON object, or a line for each class; one line too where there is no class.

    Args:
        name: of the image.
        explanations: of the image.
        written: the file of each explanation's map, None for one that failed; empty where none
            was asked for. In JSON they are the entries `written` of the explanations.
        error: why a file couldn't be written; in JSON the entry `error`.
        as_json: which of both.
        more: further entries of the JSON object.

    Example:
        >>> print_results("clip.mp4#30", [], as_json=True, frame=30)
        {"image": "clip.mp4#30", "frame": 30, "explanations": []}
    """
    if as_json:
        entries = [explanation.to_dict() for explanation in explanations]
        for entry, file in zip(entries, written, strict=False):
            entry["written"] = None if file is None else str(file)
        failed = {} if error is None else {"error": error}
        echo_json({"image": name, **more, "explanations": entries, **failed})
        return
    if not explanations:
        echo(f"{name}\tno class is probable enough")
    for explanation in explanations:
        parts = [name, explanation.label, f"probability {explanation.probability:.3f}"]
        if explanation.evidence is not None:
            parts.append(f"evidence {explanation.evidence:.3f}")
        boxes = explanation.boxes()
        if boxes:
            box = boxes[0]
            parts.append(f"box {box.x0},{box.y0},{box.x1},{box.y1}")
        if not explanation.valid:
            parts.append("no positive evidence for the class (the map is empty)")
        echo("\t".join(parts))


def print_failure(name: str, error: str, *, as_json: bool) -> None:
    """Says why an image failed, on standard error, and in JSON also in its place.

    Example:
        >>> print_failure("a.jpg", "there is no image file a.jpg", as_json=True)
        {"image": "a.jpg", "error": "there is no image file a.jpg"}
    """
    say(f"error: {error}")
    if as_json:
        echo_json({"image": name, "error": error})


def print_left_out(left_out: Sequence[LeftOut], *, as_json: bool) -> None:
    """Says what isn't taken of folders: a line for each reason, and in JSON a record of each file.

    Example:
        >>> from sigcam.images.listing import NO_IMAGE, LeftOut
        >>> print_left_out([LeftOut(Path("notes.txt"), NO_IMAGE)], as_json=True)
        {"file": "notes.txt", "left_out": "no image by its name"}
    """
    from sigcam.images.listing import described

    for line in described(left_out):
        say(line)
    for path, reason in left_out if as_json else ():
        echo_json({"file": str(path), "left_out": reason})


class Rate:
    """Images a second, and how much of the time the backend ran."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._start = time.perf_counter()

    def text(self, count: int, unit: str) -> str:
        """Says what there is to tell after `count` images or frames."""
        seconds = time.perf_counter() - self._start
        return (
            f"{count} {unit} in {seconds:.1f} s, {count / seconds:.1f} a second; "
            f"the backend ran {self._stopwatch.seconds / seconds:.0%} of the time"
        )
