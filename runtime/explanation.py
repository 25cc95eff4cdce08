"""What a Session returns for one class of one image."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from sigcam.core.artifact import HOW_TO_EXPORT
from sigcam.core.errors import UsageError
from sigcam.core.files import atomic_path, write_bytes, write_text
from sigcam.core.types import Array
from sigcam.images.overlay import ALPHA, draw
from sigcam.images.preprocess import Original, Placement
from sigcam.images.upsample import to_heatmap

if TYPE_CHECKING:
    from sigcam.runtime.classes import Classes
    from sigcam.runtime.explain import Further

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


class ClassResult(NamedTuple):
    """What an Explanation says of a class; its fields of the same names."""

    class_id: int
    label: str
    probability: float
    evidence: float | None
    cam: Array


class Box(NamedTuple):
    """A rectangle in whole pixels of the original image; x1 and y1 are just outside."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, eq=False)
class Explanation:
    """One class of one image: the prediction and its evidence map.

    Attributes:
        class_id: the class.
        label: its name, or its id as text where names are unknown.
        probability: softmax of the classifier's logits at the class, 0 to 1.
        evidence: sigmoid of the class's logit in the sigmoid branch, 0 to 1; None where
            the artifact has no sigmoid branch.
        cam: float32 [h, w], the heatmap at feature resolution, not normalised. Read-only.
        method: the CAM method that made the heatmap.
        placement: where the network's input lies in the image.
        original: the image; see `image`.
        source: the path that was given; None for bytes and arrays.
        passes: runs of this image through the network and through the head graph, added,
            that the heatmaps of one call took; 1 for the artifact's own method.
        further: what `for_classes` works with; None where the session has no head graph.
        made: the heatmap, read-only, and whether it is valid, where the backend made them on its
            device; None where they are made of `cam` on first use. The heatmaps of an image's
            classes lie in one array.
    """

    class_id: int
    label: str
    probability: float
    evidence: float | None
    cam: Array = field(repr=False)
    method: str
    placement: Placement = field(repr=False)
    original: Original = field(repr=False)
    source: str | None = None
    passes: int = 1
    further: Further | None = field(default=None, repr=False)
    made: tuple[Array, bool] | None = field(default=None, repr=False)

    def for_classes(self, classes: Classes) -> list[Explanation]:
        """Heatmaps of further classes of this image, without running the backbone again.

        From what the network said of the image, which is kept where the session has a head
        graph. The heatmaps are of this explanation's method: ablationcam runs its passes over the
        head again; eigencam's heatmap is the same for every class.

        Args:
            classes: a class or several, by id or name.

        Returns:
            One Explanation for each class, in the order given. `passes` counts those of this
            call.

        Raises:
            UnknownClassError: a class that the model doesn't have.
            UsageError: the session has no head graph or is closed; or the method is scorecam,
                which runs the whole network for every channel.
            BackendError: the backend failed.
        """
        if self.further is None:
            raise UsageError(
                "heatmaps of further classes need the head graph, which this session doesn't have; "
                f"{HOW_TO_EXPORT} and load the model again"
            )
        results, passes = self.further.results(classes)
        return [replace(self, passes=passes, made=None, **result._asdict()) for result in results]

    @property
    def image(self) -> Array:
        """The image, uint8 [H, W, 3] RGB, upright.

        An array given to the Session is held here itself: change it, and the overlay changes.
        A large JPEG was decoded smaller for the network, and is decoded whole when this is
        first asked for, once for all classes of the image: from the bytes, which are kept,
        or from the file, which must still be there.

        Raises:
            ImageError: the file is gone, or has changed.
        """
        return self.original.image

    @cached_property
    def _heatmap(self) -> tuple[Array, bool]:
        if self.made is not None:
            return self.made
        array, valid = to_heatmap(self.cam, self.placement)
        array.setflags(write=False)
        return array, valid

    @property
    def heatmap(self) -> Array:
        """The evidence map, float32 [H, W] in [0, 1], in the image's own pixels.

        0 outside the crop box that the network saw. Made on first use and kept by this
        object, so it is read-only; copy it to change it. All zeros where not `valid`.
        """
        return self._heatmap[0]

    @property
    def valid(self) -> bool:
        """Whether there is a heatmap: False where the CAM is constant or not finite."""
        return self._heatmap[1]

    def boxes(self, threshold: float = 0.2) -> list[Box]:
        """Boxes around the connected regions where the heatmap is at least `threshold`.

        Args:
            threshold: above 0, up to 1.

        Returns:
            Boxes of the outer outlines, the one around the largest area first; none
            where the heatmap isn't valid.

        Raises:
            UsageError: a threshold out of range.
        """
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}")
        if not self.valid:
            return []
        # Of the maximum itself, which is 1 only up to rounding.
        mask = (self.heatmap >= threshold * self.heatmap.max()).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        found = []
        for outline in outlines:
            x, y, width, height = cv2.boundingRect(outline)
            # An outline runs through pixel centres: that of a single row encloses nothing.
            size = (cv2.contourArea(outline), width * height)
            found.append((size, Box(x, y, x + width, y + height)))
        found.sort(key=lambda item: item[0], reverse=True)
        return [box for _, box in found]

    def overlay(self, alpha: float = ALPHA, box_threshold: float | None = None) -> Array:
        """The image with the heatmap's colours over the crop box that the network saw.

        Args:
            alpha: weight of the colours, 0 to 1.
            box_threshold: draws `boxes(box_threshold)` too; None draws none.

        Returns:
            uint8 [H, W, 3] RGB in a new array. The plain image where the heatmap isn't valid.

        Raises:
            UsageError: alpha or box_threshold out of range.
            ImageError: as for `image`.
        """
        boxes = [] if box_threshold is None else self.boxes(box_threshold)
        evidence = self.heatmap if self.valid else None
        return draw(self.image, evidence, self.placement.crop_box, alpha, boxes)

    def to_dict(self, threshold: float = 0.2) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON.

        Args:
            threshold: of the boxes.

        Raises:
            UsageError: a threshold out of range.
        """
        return {
            "source": self.source,
            "class_id": self.class_id,
            "label": self.label,
            "probability": self.probability,
            "evidence": self.evidence,
            "valid": self.valid,
            "method": self.method,
            "passes": self.passes,
            "width": self.placement.width,
            "height": self.placement.height,
            "crop_box": list(self.placement.crop_box),
            "box_threshold": threshold,
            "boxes": [list(box) for box in self.boxes(threshold)],
        }

    def save(self, path: str | Path) -> None:
        """Writes a file whole or not at all; its suffix says what.

        Args:
            path: .png, .jpg, .jpeg or .webp: the overlay. .json: `to_dict()`. .npz: the
                arrays `cam`, `heatmap`, and the entries of `to_dict` (`evidence` is NaN and
                `source` empty where there is none).

        Raises:
            UsageError: another suffix, or an image too large for the format.
            StorageError: the file can't be written.
            ImageError: as for `image`, if it is an overlay.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in _IMAGES:
            write_bytes(path, _encoded(self.overlay(), suffix))
        elif suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            write_text(path, text + "\n")
        elif suffix == ".npz":
            entries = self.to_dict()
            entries["evidence"] = np.nan if self.evidence is None else self.evidence
            entries["source"] = self.source or ""
            entries["boxes"] = np.array(entries["boxes"], np.int64).reshape(-1, 4)
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, cam=self.cam, heatmap=self.heatmap, **entries)
        else:
            raise UsageError(
                f"cannot save as {path.name!r}; the suffixes are {', '.join(_IMAGES)} "
                "(overlay), .npz (arrays) and .json"
            )


def _encoded(image: Array, suffix: str) -> bytes:
    height, width = image.shape[:2]
    advice = f"cannot write {width} x {height} pixels as {suffix}; save as .png"
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as exc:
        raise UsageError(advice) from exc
    if not done:
        raise UsageError(advice)
    return data.tobytes()
