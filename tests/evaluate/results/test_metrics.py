"""Metrics from records: by hand, and against the definition on random records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.box_accuracy import BoxScores, score_boxes
from sigcam.evaluate.localization.pixel_precision import BINS, pixel_curve
from sigcam.evaluate.localization.protocol import THRESHOLDS
from sigcam.evaluate.results.metrics import metrics, results
from sigcam.evaluate.results.records import RECORD, UNKNOWN, RecordFile, empty_record
from tests.support import direct_boxes
from tests.support.heatmaps import box_heatmap


def values_of(records, threshold=0.2):
    """Key of a metric to its value in percent."""
    found = results([records], threshold, resamples=3)
    return {one.metric.key: one.artifacts[0].metric.value for one in found}


def value(found):
    """The accuracy alone, where it comes with its threshold."""
    return found[0] if isinstance(found, tuple) else found


def scored(*images):
    """Records and the definition's images of (heatmap, true boxes, whether the class is right)."""
    records, direct = [], []
    for heatmap, truth, correct in images:
        scores = score_boxes(heatmap, np.array(truth))
        record = empty_record()
        record["has_boxes"], record["hits"] = True, scores.packed()
        record["correct"] = UNKNOWN if correct is None else correct
        records.append(record)
        direct.append((scores.every, scores.largest, correct))
    return np.stack(records), direct


def random_records(rng, count, *, boxes=1.0, masks=1.0, labels=1.0):
    """Records as if scored, the definition's images, and the sums of pixel counts."""
    records = np.stack([empty_record() for _ in range(count)])
    direct, pixels = [], np.zeros((2, BINS), np.int64)
    for record in records:
        correct = bool(rng.integers(2)) if rng.random() < labels else None
        record["correct"] = UNKNOWN if correct is None else correct
        record["probability"] = rng.uniform(0.1, 1)
        if rng.random() < boxes:
            every = np.sort(rng.random(len(THRESHOLDS)))
            scores = BoxScores(every, every * rng.random())
            record["has_boxes"], record["hits"] = True, scores.packed()
            direct.append((scores.every, scores.largest, correct))
        if rng.random() < masks:
            counts = rng.integers(0, 50, (2, BINS))
            record["has_masks"], record["pixels"] = True, counts
            pixels += counts
    return records, direct, pixels


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.sampled_from([1.0, 0.6]),
    st.sampled_from([1.0, 0.6, 0.0]),
)
def test_sums_of_records_are_what_the_definition_counts(seed, count, share, labels):
    rng = np.random.default_rng(seed)
    records, images, pixels = random_records(rng, count, boxes=share, masks=share, labels=labels)
    found = {one.metric.key: one for one in results([records], 0.25, resamples=3)}
    if images:
        known = sum(correct is not None for *_, correct in images)
        for key, want in direct_boxes.accuracies(images, 0.25).items():
            if key == "top1_cls":
                continue  # counts images without boxes too: below
            if want is None:
                assert key not in found
                continue
            got = found[key].artifacts[0].metric.value
            assert got == pytest.approx(value(want), abs=1e-9), key
            assert found[key].images == (known if key.startswith("top1") else len(images)), key
    else:
        assert "gt_known" not in found
    if pixels[1].any():
        area = found["pxap"].artifacts[0].metric.value
        assert area == pytest.approx(pixel_curve(pixels).pxap, abs=1e-9)
    known = records["correct"][records["correct"] != UNKNOWN]
    if len(known):
        assert found["top1_cls"].images == len(known)
        assert found["top1_cls"].artifacts[0].metric.value == pytest.approx(100 * known.mean())
    else:
        assert "top1_cls" not in found
    assert "road" not in found


def test_accuracy_by_hand():
    # Three images. The heatmap's box is exact, half as wide, and elsewhere.
    truth = [[20, 30, 119, 129]]
    records, images = scored(
        (box_heatmap(20, 30, 119, 129), truth, True),
        # 20 to 69 of 20 to 119: IoU 0.5, all 100 rows.
        (box_heatmap(20, 30, 69, 129), truth, False),
        (box_heatmap(150, 150, 200, 200), truth, True),
    )
    want = {
        "max_box_acc_0.3": (200 / 3, 0), "max_box_acc_0.5": (200 / 3, 0),
        "max_box_acc_0.7": (100 / 3, 0), "max_box_acc_v2": 500 / 9, "gt_known": 200 / 3,
        "gt_known_best": (200 / 3, 0), "top1_cls": 200 / 3, "top1_loc": 100 / 3,
        "top1_loc_best": (100 / 3, 0),
    }  # fmt: skip
    assert direct_boxes.accuracies(images) == {k: pytest.approx(v) for k, v in want.items()}
    assert values_of(records) == {k: pytest.approx(value(v)) for k, v in want.items()}


def test_best_and_fixed_threshold():
    # Below 0.5 the box is too large, from there on it is right.
    heatmap = np.maximum(0.5 * box_heatmap(0, 0, 200, 200), box_heatmap(20, 30, 69, 79))
    records, images = scored((heatmap, [[20, 30, 69, 79]], None))
    found, want = values_of(records), direct_boxes.accuracies(images)
    assert found["gt_known"] == want["gt_known"] == 0
    # floor(127.5) = 127 is no longer above int(t * 255) from t = 0.499 on.
    assert want["gt_known_best"] == (100, 0.499)
    assert found["gt_known_best"] == 100
    assert values_of(records, 0.498)["gt_known"] == 0
    assert values_of(records, 0.499)["gt_known"] == 100
    assert values_of(records, 0.6)["gt_known"] == 100
    for key in ("top1_cls", "top1_loc", "top1_loc_best"):
        assert key not in found
        assert want[key] is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 222), min_size=4, max_size=4))
def test_a_perfect_heatmap_scores_100(corners):
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = [xs[0], ys[0], xs[1] + 1, ys[1] + 1]
    records, _ = scored((box_heatmap(*box), [box], True))
    found = values_of(records)
    assert set(found.values()) == {100}
    assert len(found) == 9


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
    assert values_of(file.read()) == values_of(records)
    file.truncate(3)
    assert file.read().tobytes() == records[:3].tobytes()


def test_refusals():
    records, _, _ = random_records(np.random.default_rng(2), 4)
    for threshold in (0.2005, 1.0, -0.1):
        with pytest.raises(UsageError, match="threshold must be one of"):
            results([records], threshold)
    with pytest.raises(UsageError, match=r"the same images, got \[4, 3\] images"):
        results([records, records[:3]], 0.2)
    assert results([records[:0]], 0.2) == []
