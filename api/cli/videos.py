"""Whether the arguments of `sigcam explain` are a video, and what fits one."""

from __future__ import annotations

from pathlib import Path

from sigcam.cli.results import Plan
from sigcam.runtime.errors import UsageError


def the_video(
    arguments: tuple[str, ...], plan: Plan, out: Path | None, suffix: str | None, every: int | None
) -> Path | None:
    """The video that is to be explained; None where the arguments are pictures.

    A video is known by its suffix, and is explained alone: its output is one file. Those in
    folders are left to a call of their own.

    Raises:
        UsageError: a video beside other arguments, or options that don't fit.
    """
    from sigcam.runtime.video import VIDEO_SUFFIXES, codec_of

    videos = [Path(a) for a in arguments if _is_named(a, VIDEO_SUFFIXES)]
    if not videos:
        if every is not None:
            raise UsageError("--every is for a video; the arguments are pictures")
        if out is not None and out.suffix.lower() in VIDEO_SUFFIXES and not out.is_dir():
            raise UsageError(
                f"--out names a folder for pictures, got {out}; a video comes out of a video"
            )
        return None
    if len(arguments) > 1:
        raise UsageError(f"a video is explained alone; call once for {videos[0]} by itself")
    if suffix is not None:
        raise UsageError("--format is for pictures; a video's format is --out's suffix")
    if out is not None:
        codec_of(out)
        if out.exists() and out.samefile(videos[0]):
            raise UsageError(f"--out is the video itself, {out}; name another file")
        count = plan.top_k if plan.classes is None else len(plan.classes)
        if count > 1:
            raise UsageError(
                f"an overlay video shows one class, got {count}; leave out --out, or call once "
                "for each"
            )
    return videos[0]


def _is_named(argument: str, suffixes: frozenset[str]) -> bool:
    path = Path(argument)
    return path.suffix.lower() in suffixes and not path.is_dir()
