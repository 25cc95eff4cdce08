"""`sigcam explain` on images: read, run and written at once; one that fails, fails alone."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.cli.common import EXIT_FAILED, fail, say
from sigcam.cli.explain.find import STANDARD_INPUT
from sigcam.cli.explain.output import (
    Meter,
    Plan,
    Rate,
    print_failure,
    print_results,
)
from sigcam.cli.explain.overlay import with_shared_range
from sigcam.cli.streams import read_standard_input
from sigcam.core.errors import ImageError, StorageError, UsageError

if TYPE_CHECKING:
    from sigcam.cli.explain.outputs import Outputs
    from sigcam.images.overlay import OverlayOptions
    from sigcam.runtime.explanation import Explanation
    from sigcam.runtime.session import Session


def explain_images(
    session: Session, paths: list[Path], plan: Plan, outputs: Outputs | None
) -> None:
    """Prints the results of every image, and writes the maps.

    Images are read in threads, and maps are made and written in one, while the backend runs.

    Args:
        session: that explains.
        paths: the images.
        plan: what is asked of them.
        outputs: where the maps go; None writes none.

    Raises:
        SystemExit: images, or files for them, failed.

    Example:
        plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        explain_images(session, [Path("cat.jpg")], plan, outputs=None)
    """
    from sigcam.core.threads import WAITING, Stopwatch, in_order
    from sigcam.images.overlay import DEFAULTS

    sources = [read_standard_input() if path is STANDARD_INPUT else path for path in paths]
    plan = with_shared_range(plan, session, sources)
    passes = session.passes(plan.method, plan.method_options)
    meter = Meter(len(paths), passes)
    stopwatch = Stopwatch()
    results = session.stream(
        sources,
        **plan.question,
        on_error="return",
        progress=meter.report,
        # Where an image takes many passes there is nothing to gain, and the bar counts them.
        readers=plan.readers if passes == 1 else 0,
        stopwatch=stopwatch,
    )
    rate = Rate(stopwatch)

    def write(numbered: tuple[int, list[Explanation] | ImageError]) -> bool:
        index, result = numbered
        name = str(paths[index])
        if isinstance(result, ImageError):
            print_failure(name, str(result), as_json=plan.as_json)
            return False
        written, error = _saved(result, index, outputs, plan.overlay or DEFAULTS)
        print_results(name, result, written, error, as_json=plan.as_json)
        return error is None

    done = in_order(write, enumerate(results), 1, "sigcam-write", WAITING)
    with closing(results), closing(done):
        failed = sum(not good for good in meter.count(done))
    if plan.verbose:
        say(rate.text(len(paths), "images"))
    if failed:
        what = "explained" if outputs is None else "explained, or their maps not written"
        fail(f"{failed} of {len(paths)} images could not be {what}", EXIT_FAILED)


def _saved(
    explanations: list[Explanation], index: int, outputs: Outputs | None, options: OverlayOptions
) -> tuple[list[Path | None], str | None]:
    """Writes an image's maps; returns each one's file, None for a failed one, and the first error.

    Whatever is wrong with one file, a full device and a name that is too long included, is no
    reason to leave out the others.
    """
    written: list[Path | None] = []
    error: str | None = None
    if outputs is None:
        return written, error
    for explanation in explanations:
        path = outputs.path(index, explanation.class_id)
        try:
            explanation.save(path, options)
        except (ImageError, StorageError, UsageError) as exc:
            say(f"error: {exc}")
            error = error or str(exc)
            written.append(None)
        else:
            written.append(path)
    return written, error
