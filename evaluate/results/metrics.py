"""Computes metrics from records: each is a function of sums over images.

So a metric, its interval and the interval of a difference come from one definition
(`bootstrap.compare`). An image that a metric isn't defined for (no mask, say) counts in none of
its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sigcam.core.types import Array
from sigcam.evaluate.faithfulness.confidence import confidence_drop, confidence_rise
from sigcam.evaluate.localization.box_accuracy import LOC_IOU, threshold_index, unpack_hits
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS
from sigcam.evaluate.results.bootstrap import (
    LEVEL,
    RESAMPLES,
    Comparison,
    compare,
)
from sigcam.evaluate.results.records import RECORD, UNKNOWN

EVERY, LARGEST = 0, 1
"""Where a record's hits have those of all contours' boxes, and those of the largest one's."""

_LOC = IOU_THRESHOLDS.index(LOC_IOU)
_RECORDS_AT_ONCE = 512


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
        key: its name in JSON.
        label: its name in tables.
        higher_is_better: whether a higher value is better, or a lower one.
        rows: a function from records [p] to what each adds, floats [p, ...], and whether it
            counts at all, bool [p].
        of_sums: a function from the sums [R, ...] and the numbers of images that count, [R], to
            values in percent, [R].
    """

    key: str
    label: str
    higher_is_better: bool
    rows: Callable[[Array], tuple[Array, Array]]
    of_sums: Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Result:
    """A metric's values for all artifacts.

    Attributes:
        metric: the metric.
        images: number of images that count.
        artifacts: for each artifact the value and its difference to the first artifact's, with
            intervals, in percent.
    """

    metric: Metric
    images: int
    artifacts: tuple[Comparison, ...]


def metrics(threshold: float, *, multi_label: bool = False) -> list[Metric]:
    """Returns all metrics, in the order of the report.

    Args:
        threshold: the fixed threshold of GT-known and Top-1 Loc, a multiple of 0.001 in [0, 1).
        multi_label: whether records are of the classes of images that may have several. What is
            Top-1 otherwise is then recall: whether the class is among the predicted ones.

    Raises:
        UsageError: another threshold.

    >>> [metric.key for metric in metrics(0.2)][:4]
    ['top1_cls', 'top1_loc', 'top1_loc_best', 'gt_known']
    """
    fixed = threshold_index(threshold)
    at = f"at {threshold:g}"
    top1, key = ("Recall", "recall") if multi_label else ("Top-1", "top1")
    return [
        _mean(f"{key}_cls", f"{top1} Cls", _correct),
        _mean(f"{key}_loc", f"{top1} Loc {at}", lambda records: _top1_loc(records, fixed)),
        _best(f"{key}_loc_best", f"{top1} Loc, best threshold", lambda rs: _top1_loc(rs, None)),
        _mean("gt_known", f"GT-known Loc {at}", lambda records: _gt_known(records, fixed)),
        _best("gt_known_best", "GT-known Loc, best threshold", lambda rs: _gt_known(rs, None)),
        Metric(
            "max_box_acc_v2", "MaxBoxAccV2", True, _every,
            lambda sums, count: sums.max(axis=2).mean(axis=1) / count * 100,
        ),
        *(
            _best(f"max_box_acc_{iou:g}", f"MaxBoxAccV2, IoU {iou:g}", _at_iou(index))
            for index, iou in enumerate(IOU_THRESHOLDS)
        ),
        Metric("pxap", "PxAP", True, _pixels, _area),
        _mean("pointing", "Pointing game", _pointing),
        _mean("energy", "Energy inside", _finite("energy")),
        _mean("grid_pointing", "Grid pointing", _grid(slice(0, 1))),
        _best("grid_pointing_best", "Grid pointing, best threshold", _grid(slice(None))),
        _mean("class_sensitivity", "Class sensitivity", _finite("sensitivity")),
        _mean("average_drop", "Average Drop", _drop, higher=False),
        _mean("increase", "% Increase", _increase),
        _mean("insertion", "Insertion", _finite("insertion")),
        _mean("deletion", "Deletion", _finite("deletion"), higher=False),
        _mean("road", "ROAD, LeRF - MoRF", _finite("road")),
    ]  # fmt: skip


def results(
    artifacts: Sequence[Array],
    threshold: float,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    multi_label: bool = False,
) -> list[Result]:
    """Computes every metric that at least one image counts in, for several artifacts.

    Args:
        artifacts: the records [P] of each artifact, of the same images in the same order.
        threshold: the fixed threshold of GT-known and Top-1 Loc, a multiple of 0.001 in [0, 1).
        resamples: how often the bootstrap draws images.
        level: probability of the intervals, in (0, 1).
        seed: what the images are drawn with.
        multi_label: as for `metrics`.

    Raises:
        UsageError: another threshold, or other numbers of records.

    Example:
        >>> from sigcam.evaluate.results.records import empty_record
        >>> records = np.stack([empty_record(), empty_record()])
        >>> records["correct"] = 1, 0
        >>> (result,) = results([records], 0.2, resamples=10)
        >>> result.metric.key, result.images, result.artifacts[0].metric.value
        ('top1_cls', 2, 50.0)
    """
    found = []
    for metric in metrics(threshold, multi_label=multi_label):
        columns = [_Column(records, metric) for records in artifacts]
        counted = [column.counted() for column in columns]
        if min(counted) == 0:
            continue
        compared = compare(
            columns,
            lambda sums, _, metric=metric: _of_sums(metric, sums),  # type: ignore[misc]
            resamples=resamples, level=level, seed=seed,
        )  # fmt: skip
        found.append(Result(metric, counted[0], tuple(compared)))
    return found


class _Column:
    """What each image adds to one metric's sums, made of the records where it is asked for.

    The first number of a row is 1 where the image counts; the others are the metric's own.
    """

    def __init__(self, records: Array, metric: Metric) -> None:
        self._records, self._metric = records, metric

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, images: slice, /) -> Array:
        values, counts = self._metric.rows(self._records[images])
        flat = np.where(counts[:, None], values.reshape(len(values), -1), 0.0)
        return np.concatenate([counts[:, None].astype(np.float64), flat], axis=1)

    def counted(self) -> int:
        """Returns how many images count."""
        starts = range(0, len(self), _RECORDS_AT_ONCE)
        parts = (self._records[start : start + _RECORDS_AT_ONCE] for start in starts)
        return sum(int(self._metric.rows(part)[1].sum()) for part in parts)


def _of_sums(metric: Metric, sums: Array) -> Array:
    """Computes a metric from sums of `_Column`'s rows."""
    shape = metric.rows(np.zeros(0, RECORD))[0].shape[1:]
    count = sums[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return metric.of_sums(sums[:, 1:].reshape(len(sums), *shape), count)


def _mean(
    key: str,
    label: str,
    rows: Callable[[Array], tuple[Array, Array]],
    *,
    higher: bool = True,
) -> Metric:
    """Makes the metric that is the mean of one number per image."""
    return Metric(
        key, label, higher, rows, lambda sums, count: sums.reshape(len(sums)) / count * 100
    )


def _best(key: str, label: str, rows: Callable[[Array], tuple[Array, Array]]) -> Metric:
    """Makes the metric that is the mean at the best of all thresholds."""
    return Metric(
        key, label, True, rows,
        lambda sums, count: sums.max(axis=1) / count * 100,
    )  # fmt: skip


def _correct(records: Array) -> tuple[Array, Array]:
    known = records["correct"] != UNKNOWN
    return (records["correct"] == 1)[:, None].astype(np.float64), known


def _gt_known(records: Array, fixed: int | None) -> tuple[Array, Array]:
    """Returns the hits at one threshold, or at all of them."""
    hits = unpack_hits(records["hits"][:, LARGEST, _LOC])
    return (hits if fixed is None else hits[:, [fixed]]).astype(np.float64), records["has_boxes"]


def _top1_loc(records: Array, fixed: int | None) -> tuple[Array, Array]:
    hits, boxes = _gt_known(records, fixed)
    return hits * (records["correct"] == 1)[:, None], boxes & (records["correct"] != UNKNOWN)


def _every(records: Array) -> tuple[Array, Array]:
    return unpack_hits(records["hits"][:, EVERY]).astype(np.float64), records["has_boxes"]


def _at_iou(index: int) -> Callable[[Array], tuple[Array, Array]]:
    def rows(records: Array) -> tuple[Array, Array]:
        hits = unpack_hits(records["hits"][:, EVERY, index])
        return hits.astype(np.float64), records["has_boxes"]

    return rows


def _pixels(records: Array) -> tuple[Array, Array]:
    return records["pixels"].astype(np.float64), records["has_masks"]


def _area(sums: Array, count: Array) -> Array:
    """Computes PxAP from counts [R, 2, 1001], as `pixel_curve` does."""
    del count
    background, foreground = np.moveaxis(sums[:, :, ::-1].cumsum(axis=2), 1, 0)
    recall = foreground / foreground[:, -1:]
    steps = np.diff(recall, axis=1, prepend=0.0)
    predicted = background + foreground
    precision = np.divide(foreground, predicted, out=np.zeros_like(sums[:, 0]), where=predicted > 0)
    return np.asarray((precision * steps).sum(axis=1) * 100)


def _pointing(records: Array) -> tuple[Array, Array]:
    known = records["pointing"] != UNKNOWN
    return (records["pointing"] == 1)[:, None].astype(np.float64), known


def _finite(name: str) -> Callable[[Array], tuple[Array, Array]]:
    def rows(records: Array) -> tuple[Array, Array]:
        values = records[name].astype(np.float64)
        known = np.isfinite(values)
        return np.where(known, values, 0.0)[:, None], known

    return rows


def _grid(levels: slice) -> Callable[[Array], tuple[Array, Array]]:
    def rows(records: Array) -> tuple[Array, Array]:
        values = records["grid"][:, levels].astype(np.float64)
        known = np.asarray(np.isfinite(values).all(axis=1))
        return np.where(known[:, None], values, 0.0), known

    return rows


def _drop(records: Array) -> tuple[Array, Array]:
    return _confidence(records, confidence_drop)


def _increase(records: Array) -> tuple[Array, Array]:
    return _confidence(records, confidence_rise)


def _confidence(records: Array, of_pairs: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    known = np.isfinite(records["after"])
    values = np.zeros((len(records), 1))
    if known.any():
        pairs = (records[name][known].astype(np.float64) for name in ("probability", "after"))
        values[known, 0] = of_pairs(*pairs) / 100
    return values, known
