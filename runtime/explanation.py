"""What a Session returns for one class of one image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from sigcam.core.arguments import instance_of, path_of
from sigcam.core.artifact import HOW_TO_EXPORT
from sigcam.core.errors import UsageError
from sigcam.core.files import atomic_path, write_bytes, write_text
from sigcam.core.inputs import inputs_kept
from sigcam.core.types import Array
from sigcam.images.boxes import THRESHOLD, Box, boxes_of
from sigcam.images.overlay import DEFAULTS, OverlayOptions, draw, label_of
from sigcam.images.preprocess import Original, Placement
from sigcam.images.upsample import cam_range, to_heatmap, to_values, write_heatmaps
from sigcam.runtime.classes import Classes

_OVERLAYS = (".png", ".jpg", ".jpeg", ".webp")
_TRANSPARENT = (".png", ".webp")


class ClassResult(NamedTuple):
    """The fields of an Explanation that differ from class to class."""

    class_id: int
    label: str
    probability: float
    evidence: float | None
    cam: Array


class FurtherClasses(Protocol):
    """Makes results of further classes of an image that was explained before."""

    def results(self, classes: Classes) -> tuple[list[ClassResult], int]:
        """Returns a result for each class in the order given, and the passes that they took."""


@dataclass(frozen=True, eq=False)
class ExplainedImage:
    """An image that Explanations are of, shared by all of its classes.

    Attributes:
        placement: where the network's input lies in the image.
        original: the image, decoded or not yet.
        further: makes further classes; None where the session has no head graph.
    """

    placement: Placement
    original: Original
    further: FurtherClasses | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """One class of one image: the prediction and its evidence map.

    Explanations come from `Session.explain`. Copies and pickled ones keep everything but the
    way to further classes.

    Attributes:
        class_id: the class's id, 0 <= id < C.
        label: the class's name, or its id as text where names are unknown.
        probability: of the class by the classifier, 0 to 1: the softmax of its logits, or for the
            tasks "multi-label" and "binary" the sigmoid of the class's own logit.
        evidence: sigmoid of the class's logit in the sigmoid branch, 0 to 1; None where
            the artifact has no sigmoid branch.
        cam: float32 [h, w], the class activation map at feature resolution (rise: at the
            input's), >= 0 and not normalised. Read-only.
        method: the name of the CAM method that made it.
        source: the path that was given; None for bytes and arrays.
        passes: the runs of this image through the network and through the head graph, added,
            that the CAMs of one call took; 1 for the artifact's own method.

    Example:
        best = session.explain("cat.jpg")[0]
        best.label, best.probability, best.evidence
        best.heatmap  # float32 [H, W] in the image's own pixels
        best.save("cat-heatmap.png")
    """

    class_id: int
    label: str
    probability: float
    evidence: float | None
    cam: Array = field(repr=False)
    method: str
    source: str | None = None
    passes: int = 1
    _image: ExplainedImage = field(kw_only=True, repr=False)
    _made: tuple[Array, bool] | None = field(default=None, kw_only=True, repr=False)
    """The heatmap, read-only, and whether it is valid, where the backend made it on its device:
    float32, or uint8 where that was asked for. An image's heatmaps lie in one array."""

    def for_classes(self, classes: Classes) -> list[Explanation]:
        """Explains further classes of this image, without running the backbone again.

        It uses what the network gave for the image, which is kept where the session has a head
        graph. The CAMs are of this explanation's method: ablationcam runs its passes over the
        head again; eigencam's CAM is the same for every class.

        Args:
            classes: a class or several, by id or name.

        Returns:
            One Explanation for each class, in the order given. `passes` counts those of this
            call.

        Raises:
            UnknownClassError: a class that the model doesn't have.
            UsageError: the session has no head graph or is closed; or the method is scorecam or
                rise, which run the whole network many times.
            BackendError: the backend failed.
        """
        if self._image.further is None:
            raise UsageError(
                "heatmaps of further classes need the head graph, which this session doesn't have; "
                f"{HOW_TO_EXPORT} and load the model again"
            )
        results, passes = self._image.further.results(classes)
        return [replace(self, passes=passes, _made=None, **one._asdict()) for one in results]

    @property
    def image(self) -> Array:
        """Returns the image as the model reads it, [H, W, n], upright.

        That is uint8 [H, W, 3] RGB for most; float32 where the model takes no bytes.
        An array given to the Session is held here itself: change it, and the overlay changes.
        A large JPEG was decoded smaller for the network, and is decoded whole when this is
        first asked for, once for all classes of the image: from the bytes, which are kept,
        or from the file, which must still be there.

        Raises:
            ImageError: the file is gone, or has changed.
        """
        return self._image.original.image

    @property
    def size(self) -> tuple[int, int]:
        """Returns (width, height) of the image in pixels."""
        return self._image.placement.width, self._image.placement.height

    @property
    def crop_box(self) -> Box:
        """Returns the rectangle of the image that the network saw."""
        return Box(*self._image.placement.crop_box)

    @cached_property
    def _heatmap(self) -> tuple[Array, bool]:
        if self._made is not None:
            made, valid = self._made
            if made.dtype != np.uint8:
                return self._made
            floats = made * np.float32(1 / 255)
            floats.setflags(write=False)
            return floats, valid
        array, valid = to_heatmap(self.cam, self._image.placement)
        array.setflags(write=False)
        return array, valid

    @property
    def _there(self) -> tuple[Array, bool] | None:
        """Returns the heatmap, floats or bytes, where it was made before."""
        return self._made or self.__dict__.get("_heatmap")

    @property
    def heatmap(self) -> Array:
        """Returns the CAM enlarged to the image, float32 [H, W] in [0, 1].

        0 outside the crop box that the network saw. Made on first use and kept by this
        object, so it is read-only; copy it to change it. All zeros where not `valid`.
        """
        return self._heatmap[0]

    def write_heatmap(self, out: Array) -> bool:
        """Writes the heatmap into an array of the caller's; keeps nothing.

        Args:
            out: float32 [H, W], or uint8 for 255 times as much, rounded; whatever is in it. May
                be a part of a larger array.

        Returns:
            Whether the heatmap is valid; if not, `out` is all zeros.

        Raises:
            UsageError: an array of another shape or type.
        """
        instance_of(out, np.ndarray, "out")
        if out.shape != self.size[::-1] or out.dtype not in (np.uint8, np.float32):
            raise UsageError(
                f"out must be uint8 or float32 {list(self.size[::-1])}, got {out.dtype} "
                f"{list(out.shape)}"
            )
        made = self._there
        if made is None:
            return write_heatmaps(self.cam[None], self._image.placement, out[None])[0]
        array, valid = made
        if array.dtype == out.dtype:
            out[:] = array
        elif out.dtype == np.uint8:
            out[:] = cv2.convertScaleAbs(array, alpha=255)
        else:  # bytes of the device's
            np.multiply(array, np.float32(1 / 255), out=out)
        return valid

    @property
    def valid(self) -> bool:
        """Says whether there is a heatmap: False where the CAM is constant or not finite."""
        return self._heatmap[1]

    def boxes(self, threshold: float = THRESHOLD) -> list[Box]:
        """Finds the boxes around the regions where the heatmap is at least `threshold`.

        Args:
            threshold: share of the heatmap's maximum, above 0 and at most 1.

        Returns:
            Boxes of the outer outlines, the one around the largest area first; none
            where the heatmap isn't valid.

        Raises:
            UsageError: a threshold out of range.
        """
        return boxes_of(self.heatmap, threshold)

    @property
    def cam_range(self) -> tuple[float, float] | None:
        """Returns the smallest and largest value of the CAM enlarged to the image.

        They are what the heatmap shows as 0 and 1; in the crop box, which may cut cells off.
        None where the CAM isn't finite.
        """
        return cam_range(self.cam, self._image.placement)

    def overlay(self, options: OverlayOptions = DEFAULTS, image: Array | None = None) -> Array:
        """Draws the map over the image, at the image's own size.

        Args:
            options: colours, opacity, contours, boxes, label, legend, background and range.
            image: another one of the same size to draw on, [H, W, n], such as the next frame of
                a video; None for the explained one.

        Returns:
            uint8 [H, W, 3] RGB, or [H, W, 4] RGBA for the background "none", in a new array. No
            colours where there is nothing to show: the heatmap isn't valid, or with a `cam_range`
            the CAM isn't finite. Of an image of one or two channels, the first is shown in grey;
            of more than three, the first three are, as red, green and blue; values that aren't
            bytes from the smallest to the largest of those shown.

        Raises:
            UsageError: `options` or `image` is something else, or of another size.
            ImageError: as for `image`.

        Example:
            one.overlay(OverlayOptions(label=True, legend=True, contours=(0.5,)))
        """
        instance_of(options, OverlayOptions, "options", "see help(sigcam.OverlayOptions)")
        boxes = [] if options.boxes is None else self.boxes(options.boxes)
        if options.background == "none":  # the image isn't needed, and may not be decoded yet
            image = np.broadcast_to(np.uint8(0), (*self.size[::-1], 3))
        elif image is None:
            image = self.image
        else:
            _check_image(image, self.size)
        label = label_of(self.label, self.probability, self.evidence) if options.label else ()
        values = self._shown(options)
        return draw(image, values, self.crop_box, options, boxes=boxes, label=label)

    def _shown(self, options: OverlayOptions) -> Array | None:
        """Returns the values that an overlay shows, float32 [H, W] in [0, 1], if there are any."""
        bounds = options.cam_range
        if bounds is None and not options.is_diverging:
            return self.heatmap if self.valid else None
        own = self.cam_range
        if own is None:
            return None
        if bounds is None:
            most = max(abs(own[0]), abs(own[1]))
            bounds = (-most, most)
        if not bounds[0] < bounds[1]:
            return None
        return to_values(self.cam, self._image.placement, bounds)

    def to_dict(self, threshold: float = THRESHOLD) -> dict[str, Any]:
        """Returns everything but the arrays, ready for JSON.

        Args:
            threshold: of the boxes, as for `boxes`.

        Raises:
            UsageError: a threshold out of range.
        """
        boxes = [list(box) for box in self.boxes(threshold)]
        width, height = self.size
        return {
            "source": self.source,
            "class_id": self.class_id,
            "label": self.label,
            "probability": self.probability,
            "evidence": self.evidence,
            "valid": self.valid,
            "cam_range": None if self.cam_range is None else list(self.cam_range),
            "method": self.method,
            "passes": self.passes,
            "width": width,
            "height": height,
            "crop_box": list(self.crop_box),
            "box_threshold": float(threshold),
            "boxes": boxes,
        }

    def save(self, path: str | Path, overlay: OverlayOptions = DEFAULTS) -> None:
        """Writes a file whole or not at all; its suffix says what.

        Args:
            path: .png, .jpg, .jpeg or .webp: the overlay. .json: `to_dict()`. .npz: the
                arrays `cam`, `heatmap`, and the entries of `to_dict` (`evidence` and
                `cam_range` are NaN and `source` empty where there is none).
            overlay: how it is drawn; only .png and .webp keep a map alone, which is transparent.

        Raises:
            UsageError: another suffix, an image too large for the format, or the very file that
                was explained.
            StorageError: the file can't be written.
            ImageError: as for `image`, if it is an overlay.
        """
        path = path_of(path, "the file to write")
        file = (self.source or "").rpartition("#")[0]  # of a frame or page, "clip.gif#2"
        with inputs_kept(*filter(None, (self.source, file))):
            self._write(path, overlay)

    def _write(self, path: Path, overlay: OverlayOptions) -> None:
        suffix = path.suffix.lower()
        if suffix in _OVERLAYS:
            write_bytes(path, encode_image(self.overlay(overlay), suffix))
        elif suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            write_text(path, text + "\n")
        elif suffix == ".npz":
            entries = self.to_dict()
            entries["evidence"] = np.nan if self.evidence is None else self.evidence
            entries["cam_range"] = (np.nan, np.nan) if self.cam_range is None else self.cam_range
            entries["source"] = self.source or ""
            entries["boxes"] = np.array(entries["boxes"], np.int64).reshape(-1, 4)
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, cam=self.cam, heatmap=self.heatmap, **entries)
        else:
            raise UsageError(
                f"cannot save as {path.name!r}; the suffixes are {', '.join(_OVERLAYS)} "
                "(overlay), .npz (arrays) and .json"
            )


def write_each(explanations: Sequence[Explanation], out: Array) -> None:
    """Writes heatmaps into an array, those of an image's classes at once; keeps nothing.

    Args:
        explanations: K of them, of images of one size.
        out: [K, H, W], as for `Explanation.write_heatmap`.
    """
    first = 0
    for placed, alike in groupby(explanations, _to_enlarge):
        some = list(alike)
        part = out[first : first + len(some)]
        first += len(some)
        if placed is not None:
            write_heatmaps(np.stack([one.cam for one in some]), placed[0], part)
            continue
        for one, heatmap in zip(some, part, strict=True):
            one.write_heatmap(heatmap)


def _to_enlarge(one: Explanation) -> tuple[Placement, tuple[int, ...]] | None:
    """Returns what CAMs that are enlarged together share; None where a heatmap is there."""
    return None if one._there is not None else (one._image.placement, one.cam.shape)


def _check_image(image: Array, size: tuple[int, int]) -> None:
    instance_of(image, np.ndarray, "image")
    if image.ndim != 3 or image.shape[:2] != size[::-1] or image.dtype not in (
        np.uint8, np.float32,
    ):  # fmt: skip
        raise UsageError(
            f"image must be uint8 or float32 [{size[1]}, {size[0]}, channels], as the explained "
            f"one is, got {image.dtype} {list(image.shape)}"
        )


def encode_image(image: Array, suffix: str) -> bytes:
    r"""Encodes pixels as an image file.

    Args:
        image: uint8 [H, W, 3] RGB, or [H, W, 4] RGBA.
        suffix: ".png", ".jpg", ".jpeg" or ".webp".

    Raises:
        UsageError: an image too large for the format, or transparent where it can't be.

    Example:
        >>> encode_image(np.zeros((4, 6, 3), np.uint8), ".png")[:4]
        b'\x89PNG'
    """
    height, width, channels = image.shape
    if channels == 4 and suffix not in _TRANSPARENT:
        raise UsageError(
            f"the map alone is transparent, which {suffix} files can't be; save it as "
            f"{' or '.join(_TRANSPARENT)}"
        )
    advice = f"cannot write {width} x {height} pixels as {suffix}; save as .png"
    order = cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, order))
    except cv2.error as exc:
        raise UsageError(advice) from exc
    if not done:
        raise UsageError(advice)
    return data.tobytes()
