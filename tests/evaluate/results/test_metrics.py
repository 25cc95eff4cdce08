"""Metrics from records against the accumulators, on random records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.evaluate.localization.box_accuracy import BoxAccuracy, BoxScores
from sigcam.evaluate.localization.pixel_precision import BINS, pixel_curve
from sigcam.evaluate.localization.protocol import THRESHOLDS
from sigcam.evaluate.results.metrics import metrics, results
from sigcam.evaluate.results.records import RECORD, RecordFile, empty_record


def random_records(rng, count, *, boxes=1.0, masks=1.0):
    """Records as if scored, and what the accumulators say of them."""
    records = np.stack([empty_record() for _ in range(count)])
    accuracy = BoxAccuracy()
    pixels = np.zeros((2, BINS), np.int64)
    for record in records:
        correct = bool(rng.integers(2))
        record["correct"] = correct
        record["probability"] = rng.uniform(0.1, 1)
        if rng.random() < boxes:
            every = np.sort(rng.random(len(THRESHOLDS)))
            scores = BoxScores(every, every * rng.random())
            record["has_boxes"], record["hits"] = True, scores.packed()
            accuracy.add(scores, correct)
        if rng.random() < masks:
            counts = rng.integers(0, 50, (2, BINS))
            record["has_masks"], record["pixels"] = True, counts
            pixels += counts
    return records, accuracy, pixels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([1.0, 0.6]))
def test_sums_of_records_are_what_the_accumulators_count(seed, count, share):
    rng = np.random.default_rng(seed)
    records, accuracy, pixels = random_records(rng, count, boxes=share, masks=share)
    found = {one.metric.key: one for one in results([records], 0.25, resamples=3)}
    if accuracy.images:
        want = accuracy.result(0.25)
        for key, value in {
            "gt_known": want.gt_known, "gt_known_best": want.gt_known_best[0],
            "top1_loc": want.top1_loc, "top1_loc_best": want.top1_loc_best[0],
            "max_box_acc_v2": want.max_box_acc_v2, "max_box_acc_0.5": want.at_iou[1],
        }.items():  # fmt: skip
            assert found[key].artifacts[0].metric.value == pytest.approx(value, abs=1e-9), key
            assert found[key].images == accuracy.images
    else:
        assert "gt_known" not in found
    if pixels[1].any():
        value = found["pxap"].artifacts[0].metric.value
        assert value == pytest.approx(pixel_curve(pixels).pxap, abs=1e-9)
    assert found["top1_cls"].images == count
    assert "road" not in found


def test_every_metric_has_its_own_key_and_label():
    all_metrics = metrics(0.2)
    for name in ("key", "label"):
        assert len({getattr(one, name) for one in all_metrics}) == len(all_metrics)


def test_identical_artifacts_do_not_differ():
    records, _, _ = random_records(np.random.default_rng(0), 20)
    for one in results([records, records.copy()], 0.2, resamples=50):
        difference = one.artifacts[1].difference
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_records_are_read_as_they_were_written(tmp_path):
    records, _, _ = random_records(np.random.default_rng(1), 9)
    file = RecordFile(tmp_path / "0.records")
    assert len(file) == 0
    assert file.read().shape == (0,)
    file.append(records[:4])
    file.append(records[4:])
    assert len(file) == 9
    assert file.read().tobytes() == records.tobytes()
    assert file.read().dtype == RECORD
    file.truncate(3)
    assert file.read().tobytes() == records[:3].tobytes()
