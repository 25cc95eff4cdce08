"""`--overlay` of `sigcam explain`: how maps are drawn."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigcam.cli.explain.output import Plan
from sigcam.core.errors import UsageError

if TYPE_CHECKING:
    from sigcam.cli.explain.moving import Moving
    from sigcam.images.decode import ImageLike
    from sigcam.images.overlay import OverlayOptions
    from sigcam.runtime.session import Session

SHARED = "shared"

HELP = (
    "How maps are drawn; repeats. NAME or NAME=VALUE: label, legend, alpha=0.75, "
    "opacity=value|even, colour-map=inferno|turbo|jet|..., contours=0.3,0.6, boxes=0.2, "
    "background=image|none, range=LOW,HIGH|shared, font=FILE. See docs/overlays.md."
)


def overlay_options(given: Iterable[str]) -> tuple[OverlayOptions, bool]:
    """Reads what `--overlay` was given.

    Args:
        given: texts NAME or NAME=VALUE.

    Returns:
        The options, and whether the range is to be the one that all maps share, which has to be
        found first.

    Raises:
        UsageError: an unknown name, one that is given twice, or a value that isn't one.

    Example:
        >>> options, shared = overlay_options(["label", "contours=0.3,0.6", "range=shared"])
        >>> options.label, options.contours, shared
        (True, (0.3, 0.6), True)
    """
    from sigcam.images.boxes import THRESHOLD
    from sigcam.images.overlay import OverlayOptions

    fields: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        name = name.strip().lower().replace("_", "-").replace("color", "colour")
        if name not in _READERS:
            near = difflib.get_close_matches(name, _READERS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"--overlay has no {name!r}; {hint}It takes {', '.join(sorted(_READERS))}"
            )
        field, read = _READERS[name]
        if field in fields:
            raise UsageError(f"--overlay {name} is given twice; give it once")
        if not value and name not in ("label", "legend", "boxes"):
            raise UsageError(f"--overlay {name} needs a value; write --overlay {name}=VALUE")
        alone = THRESHOLD if name == "boxes" else True
        fields[field] = read(name, value.strip()) if value else alone
    shared = fields.get("cam_range") == SHARED
    if shared:
        del fields["cam_range"]
    return OverlayOptions(**fields), shared


def with_shared_range(plan: Plan, session: Session, images: Iterable[ImageLike]) -> Plan:
    """Finds the range that all maps share, where the plan asks for it.

    All images are explained for that, once more than for the maps. Those that can't be read don't
    count.

    Args:
        plan: what is asked.
        session: that explains.
        images: all of them.

    Returns:
        The plan with the range among its options.

    Raises:
        UsageError: there is no such range.

    Example:
        plan = with_shared_range(plan, session, paths)
    """
    from sigcam.runtime.several import shared_cam_range

    if not plan.shares_range or plan.overlay is None:
        return plan
    results = session.stream(
        images,
        **plan.question,
        on_error="return",
        readers=plan.readers,
    )
    found = shared_cam_range(one for one in results if isinstance(one, list))
    return replace(plan, overlay=replace(plan.overlay, cam_range=found))


def check_overlay(
    given: tuple[str, ...], out: Path | None, suffix: str, moving: Moving | None
) -> None:
    """Refuses `--overlay` where no overlay is drawn, or not as it is asked for.

    Raises:
        UsageError: says what to do.

    Example:
        >>> check_overlay(("label",), Path("maps"), "png", moving=None)
    """
    if not given:
        return
    if out is None:
        raise UsageError("--overlay says how maps are drawn; name a folder for them with --out")
    if suffix in ("npz", "json") and moving is None:
        raise UsageError(
            f"--overlay says how maps are drawn, and --format {suffix} draws none; leave out one "
            "of the two, or take png, jpg or webp"
        )
    options, shared = overlay_options(given)
    if shared and moving is not None and moving.live:
        raise UsageError(
            f"--overlay range=shared goes through all images twice, and {moving.name} can't be "
            "read again; name the range, as in --overlay range=0,5"
        )
    if options.background == "none" and (moving is not None or suffix == "jpg"):
        what = "a video" if moving is not None else "a .jpg file"
        raise UsageError(
            f"--overlay background=none is transparent, which {what} can't be; write images as "
            "png or webp"
        )


def _text(_: str, value: str) -> str:
    return value


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as exc:
        raise UsageError(f"--overlay {name} must be a number, got {value!r}") from exc


def _numbers(name: str, value: str) -> tuple[float, ...]:
    return tuple(_number(name, one) for one in value.split(","))


def _range(name: str, value: str) -> tuple[float, ...] | str:
    return SHARED if value == SHARED else _numbers(name, value)


def _switch(name: str, value: str) -> bool:
    if value.lower() not in ("yes", "no", "true", "false"):
        raise UsageError(f"--overlay {name} takes yes or no, or nothing for yes, got {value!r}")
    return value.lower() in ("yes", "true")


_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "alpha": ("alpha", _number),
    "background": ("background", _text),
    "boxes": ("boxes", _number),
    "colour-map": ("colour_map", _text),
    "contours": ("contours", _numbers),
    "font": ("font", _text),
    "label": ("label", _switch),
    "legend": ("legend", _switch),
    "opacity": ("opacity", _text),
    "range": ("cam_range", _range),
}
"""By name: the field of OverlayOptions, and what reads its value from a text."""
