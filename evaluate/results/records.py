"""Keeps one record of fixed size for each image, in a file that grows in order.

So memory doesn't grow with the number of images, an evaluation that was interrupted goes on
after the last whole record, and metrics and their intervals are computed from the file alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sigcam.core.errors import StorageError
from sigcam.core.inputs import refuse_input
from sigcam.core.types import Array
from sigcam.evaluate.localization.grid_pointing import LEVELS
from sigcam.evaluate.localization.pixel_precision import BINS
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS, THRESHOLDS

UNKNOWN = -1
"""What `correct` and `pointing` are where they aren't known."""

_BITS = -(-len(THRESHOLDS) // 8)

RECORD = np.dtype(
    [
        ("predicted", "<i4"),  # the most probable class; for multi-label the sample's own
        ("probability", "<f4"),  # of the predicted class
        ("cam_class", "<i4"),  # the class whose CAM was scored
        ("correct", "i1"),  # whether the true class is (among) the predicted; -1: isn't known
        ("valid", "?"),  # whether the CAM isn't constant
        ("has_boxes", "?"),
        ("hits", "u1", (2, len(IOU_THRESHOLDS), _BITS)),  # as `BoxScores.packed`
        ("iou", "<f4"),  # of the largest contour's box at the fixed threshold; NaN without boxes
        ("has_masks", "?"),
        ("pixels", "<u2", (2, BINS)),  # as `pixel_counts`; a square has 50,176 pixels
        ("pointing", "i1"),  # whether the maximum hits; -1: neither boxes nor masks
        ("energy", "<f4"),  # share inside the object; NaN: neither boxes nor masks
        # NaN from here on: not measured.
        ("sensitivity", "<f4"),  # `class_sensitivity`
        ("grid", "<f4", (len(LEVELS),)),  # mosaics: `tile_shares`, the mean over the tiles
        ("after", "<f4"),  # probability of the predicted class on the image times the heatmap
        ("insertion", "<f4"),  # area under the curve
        ("deletion", "<f4"),  # area under the curve
        ("road", "<f4"),  # `road_score`
    ]
)
"""One image and artifact: under five kilobytes, most of it the counts of PxAP."""


class RecordFile:
    """The records of one artifact, written in the order of the images.

    Attributes:
        path: the file; it need not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = RecordFile(Path(folder, "records.bin"))
        ...     file.append(np.stack([empty_record(), empty_record()]))
        ...     file.truncate(1)
        ...     len(file)
        1
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """Returns the number of whole records."""
        try:
            return self.path.stat().st_size // RECORD.itemsize
        except FileNotFoundError:
            return 0

    def truncate(self, count: int) -> None:
        """Keeps the first `count` records, and no part of a further one.

        Raises:
            StorageError: the file can't be written.
        """
        refuse_input(self.path)
        try:
            with self.path.open("ab") as file:
                file.truncate(count * RECORD.itemsize)
        except OSError as exc:
            raise StorageError(f"cannot write {self.path}: {exc}") from exc

    def append(self, records: Array) -> None:
        """Writes further records.

        Args:
            records: of the type `RECORD`, [p].

        Raises:
            StorageError: the file can't be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write(records.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise StorageError(f"cannot write {self.path}: {exc}; make room, and go on") from exc

    def read(self) -> Array:
        """Returns all records [P]; they are read from the file where they are used."""
        count = len(self)
        if count == 0:
            return np.zeros(0, RECORD)
        return np.memmap(self.path, RECORD, "r", shape=(count,))


_MEASURED = ("iou", "energy", "sensitivity", "grid", "after", "insertion", "deletion", "road")


def empty_record() -> Array:
    """Returns a record [] of which nothing is known yet.

    Example:
        >>> record = empty_record()
        >>> int(record["pointing"]), bool(record["has_boxes"]), float(record["iou"])
        (-1, False, nan)
    """
    record = np.zeros((), RECORD)
    for name in ("correct", "pointing"):
        record[name] = UNKNOWN
    for name in _MEASURED:
        record[name] = np.nan
    return record
