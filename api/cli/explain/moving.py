"""Which arguments of `sigcam explain` are a video or a live source, and what fits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sigcam.cli.explain.output import Plan
from sigcam.core.errors import UsageError


@dataclass(frozen=True)
class Moving:
    """A video or a live source among the arguments.

    Attributes:
        name: as it was given.
        live: whether it is a live source.
    """

    name: str
    live: bool

    @property
    def path(self) -> Path | str:
        """Returns a video file's path, or its address."""
        from sigcam.images.video.reader import is_address

        return self.name if is_address(self.name) else Path(self.name)


def find_moving(
    arguments: tuple[str, ...],
    plan: Plan,
    out: Path | None,
    suffix: str | None,
    options: Mapping[str, object],
) -> Moving | None:
    """Finds the video or live source that is to be explained; None where all are images.

    A video is known by its suffix, a live source by its name. Each is explained alone: its output
    is one file. Videos in folders are left to calls of their own.

    Args:
        arguments: of the command.
        plan: what is asked.
        out: the output's path.
        suffix: of images in an output folder.
        options: those that are for moving images only, by name; None where they aren't given.

    Raises:
        UsageError: a video beside other arguments, or options that don't fit.

    Example:
        >>> plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        >>> find_moving(("cat.jpg", "dog.jpg"), plan, None, None, {})
        >>> find_moving(("clip.mp4",), plan, Path("overlay.mp4"), None, {})
        Moving(name='clip.mp4', live=False)
        >>> find_moving(("rtsp://door/1",), plan, None, None, {"reconnect": 3}).live
        True
    """
    found = [one for one in map(_moving, arguments) if one is not None]
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if not found:
        _check_images(out, given)
        return None
    if len(arguments) > 1:
        raise UsageError(f"a video is explained alone; call once for {found[0].name} by itself")
    if suffix is not None:
        raise UsageError("--format is for images; a video's format is --out's suffix")
    if options.get("reconnect") is not None and not found[0].live:
        raise UsageError(f"--reconnect is for a live source, {found[0].name} is a video")
    if out is not None:
        _check_out(out, plan)
    return found[0]


def _moving(argument: str) -> Moving | None:
    from sigcam.images.suffixes import VIDEO_SUFFIXES
    from sigcam.images.video.live import is_live
    from sigcam.images.video.reader import is_address

    if is_live(argument):
        return Moving(argument, live=True)
    path = Path(urlsplit(argument).path if is_address(argument) else argument)
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        return Moving(argument, live=False)
    return None


def _check_images(out: Path | None, given: list[str]) -> None:
    from sigcam.images.suffixes import VIDEO_SUFFIXES

    if given:
        raise UsageError(f"{given[0]} is for a video; the arguments are images")
    if out is not None and out.suffix.lower() in VIDEO_SUFFIXES and not out.is_dir():
        raise UsageError(
            f"--out names a folder for images, got {out}; a video comes out of a video"
        )


def _check_out(out: Path, plan: Plan) -> None:
    from sigcam.images.video.writer import codec_of

    codec_of(out)
    if plan.min_probability is not None:
        raise UsageError(
            "an overlay video shows one class in every frame, and --min-probability asks for "
            "any number of them; leave out one of the two"
        )
    if plan.count > 1:
        raise UsageError(
            f"an overlay video shows one class, got {plan.count}; leave out --out, or call "
            "once for each"
        )
