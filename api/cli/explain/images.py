"""`sigcam explain` on images: files, folders and globs, read, run and written at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.cli.common import EXIT_FAILED, fail, say
from sigcam.cli.explain.output import (
    Meter,
    Plan,
    Rate,
    print_results,
)
from sigcam.core.errors import UsageError

if TYPE_CHECKING:
    from sigcam.core.errors import ImageError
    from sigcam.runtime.explanation import Explanation
    from sigcam.runtime.session import Session


def explain_images(
    session: Session, paths: list[Path], plan: Plan, out: Path | None, names: list[str], suffix: str
) -> None:
    """Prints the results of every image, and writes the maps.

    Images are read in threads, and maps are made and written in one, while the backend runs.

    Args:
        session: that explains.
        paths: the images.
        plan: what is asked of them.
        out: folder for the maps; None writes none.
        names: of the images in it, without suffix; those of an image's several classes get
            the class's id.
        suffix: of the maps' files, without a dot.

    Example:
        plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        explain_images(session, [Path("cat.jpg")], plan, Path("maps"), ["cat"], "png")
    """
    from sigcam.core.errors import ImageError
    from sigcam.core.threads import WAITING, Stopwatch, in_order

    passes = session.passes(plan.method, plan.method_options)
    meter = Meter(len(paths), passes)
    stopwatch = Stopwatch()
    results = session.stream(
        paths,
        classes=plan.classes,
        top_k=plan.top_k,
        min_probability=plan.min_probability,
        on_error="return",
        method=plan.method,
        method_options=plan.method_options,
        progress=meter.report,
        # Where an image takes many passes there is nothing to gain, and the bar counts them.
        readers=plan.readers if passes == 1 else 0,
        stopwatch=stopwatch,
    )
    rate = Rate(stopwatch)

    def write(numbered: tuple[int, list[Explanation] | ImageError]) -> bool:
        index, result = numbered
        if isinstance(result, ImageError):
            say(f"error: {result}")
            return False
        print_results(str(paths[index]), result, as_json=plan.as_json)
        if out is None:
            return True
        try:
            for explanation in result:
                label = "" if len(result) == 1 else f"-{explanation.class_id}"
                explanation.save(out / f"{names[index]}{label}.{suffix}")
        except ImageError as exc:  # the file went, or changed, before its overlay was drawn
            say(f"error: {exc}")
            return False
        return True

    done = in_order(write, enumerate(results), 1, "sigcam-write", WAITING)
    with closing(results), closing(done):
        failed = sum(not good for good in meter.count(done))
    if plan.verbose:
        say(rate.text(len(paths), "images"))
    if failed:
        fail(f"{failed} of {len(paths)} images could not be explained", EXIT_FAILED)


def find_images(arguments: tuple[str, ...]) -> Iterator[Path]:
    """Yields files as they are, and the images of folders (recursively) and of globs, sorted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in find_images((folder, "c.jpg"))]
        ['a.jpg', 'b.png', 'c.jpg']
    """
    from sigcam.images.listing import list_images

    for argument in arguments:
        if not argument:
            raise UsageError("an image's name is empty; name files, folders or globs")
        path = Path(argument)
        if path.is_dir():
            found = list(list_images(path).images)
        elif not path.exists() and any(c in argument for c in "*?["):
            found = _matches(path)
        else:
            yield path
            continue
        if not found:
            raise UsageError(f"{argument} has no images; name files, folders or globs that have")
        yield from sorted(found)


def _matches(pattern: Path) -> list[Path]:
    start = Path(pattern.anchor or ".")
    try:
        found = start.glob(str(pattern.relative_to(pattern.anchor)))
        return [path for path in found if path.is_file()]
    except (ValueError, NotImplementedError) as exc:
        raise UsageError(f"{pattern} is no usable glob: {exc}") from exc


def _without_suffix(path: Path) -> str:
    """Takes the suffix off, and keeps the number of a frame or page behind it."""
    name, mark, index = path.name.rpartition("#")
    if mark and index.isdigit() and name:
        return f"{path.with_name(name).with_suffix('')}#{index}"
    return str(path.with_suffix(""))


def output_names(paths: list[Path], arguments: tuple[str, ...]) -> list[str]:
    """Gives each image a distinct name without suffix; inside a folder argument its subpath.

    Example:
        >>> output_names([Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.jpg")], ())
        ['cat', 'cat-2', 'dog']
        >>> output_names([Path("clip.gif#0"), Path("clip.gif#12")], ())
        ['clip#0', 'clip#12']
    """
    folders = [Path(a) for a in arguments if Path(a).is_dir()]
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        folder = next((f for f in folders if f in path.parents), path.parent)
        name = base = _without_suffix(path.relative_to(folder))
        count = 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        names.append(name)
    return names
