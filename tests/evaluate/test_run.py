"""Whole evaluations on a backend, against the metrics of maps that a Session makes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import read_masks
from sigcam.evaluate import EvaluateOptions, evaluate, open_dataset, run, stages
from sigcam.evaluate.faithfulness.confidence import confidence_drop, confidence_rise, masked_image
from sigcam.evaluate.localization.box_accuracy import BoxAccuracy, score_boxes
from sigcam.evaluate.localization.pixel_precision import PixelPrecision, pixel_counts
from sigcam.evaluate.localization.protocol import (
    enlarge,
    normalise,
    pixel_labels,
    place_scores,
    scale_boxes,
)
from sigcam.evaluate.results.metrics import results
from sigcam.images.decode import read_image
from sigcam.images.preprocess import prepare
from sigcam.runtime.session import load

pytest.importorskip("onnxruntime")
ALL = ("confidence", "insertion", "deletion", "road")


def values(found):
    """Key of a metric to its value for each artifact."""
    return {
        one.metric.key: [artifact.metric.value for artifact in one.artifacts]
        for one in results(found.records, found.options.threshold, resamples=20)
    }


def options(**changes):
    return EvaluateOptions(**{"backend": "ort", "batch_size": 5, "workers": 2, **changes})


@pytest.mark.parametrize("rule", ["stretch", "crop", "letterbox"])
def test_numbers_are_those_of_a_sessions_maps(artifact, squares, tmp_path, rule):
    """One image at a time, by the public metrics, with nothing of the run's own code."""
    path, dataset = artifact(rule=rule), open_dataset(squares)
    found = values(evaluate([path], dataset, tmp_path / "out", options()))
    boxes, pixels = BoxAccuracy(), PixelPrecision()
    before, after = [], []
    with load(path, backend="ort") as session:
        for sample in dataset.samples:
            image = read_image(sample.path)
            [asked] = session.explain(image, classes=sample.label)
            [best] = session.explain(image)
            scores, _ = place_scores(asked.cam, asked.placement)
            truth = scale_boxes(sample.boxes, sample.size)
            boxes.add(score_boxes(scores, truth), best.class_id == sample.label)
            inside, ignored = read_masks(sample)
            pixels.add(pixel_counts(scores, pixel_labels([inside], ignored)))
            tensor = prepare(image, session.spec.preprocessing)[0]
            masked = masked_image(tensor, normalise(enlarge(best.cam, 56, 56)))
            # An image of the input's size, so that no rule changes it.
            feeds = {"image": masked[None], "class_ids": np.array([[best.class_id]])}
            logits = session._backend.infer(feeds, ["logits"])["logits"][0].astype(np.float64)
            powers = np.exp(logits - logits.max())
            before.append(best.probability)
            after.append(powers[best.class_id] / powers.sum())
    want = boxes.result(0.2)
    for key, value in {
        "top1_cls": want.top1_cls, "top1_loc": want.top1_loc,
        "top1_loc_best": want.top1_loc_best[0], "gt_known": want.gt_known,
        "gt_known_best": want.gt_known_best[0], "max_box_acc_v2": want.max_box_acc_v2,
        "max_box_acc_0.3": want.at_iou[0], "max_box_acc_0.7": want.at_iou[2],
        "pxap": pixels.result().pxap,
    }.items():  # fmt: skip
        assert found[key] == [pytest.approx(value, abs=1e-9)], key
    # Records have confidences in float32.
    drop, rise = confidence_drop(before, after).mean(), confidence_rise(before, after).mean()
    assert found["average_drop"] == [pytest.approx(drop, abs=1e-4)]
    assert found["increase"] == [pytest.approx(rise, abs=1e-9)]


def test_maps_of_bright_rectangles_are_right(artifact, squares, tmp_path):
    """Features of 7 x 7 are coarse; still, each map lies on its rectangle."""
    found = values(evaluate([artifact()], open_dataset(squares), tmp_path / "out", options()))
    assert found["top1_cls"] == [100]
    assert found["pointing"] == [100]
    assert found["gt_known_best"][0] > 90
    assert found["pxap"][0] > 90
    assert found["energy"][0] > 60


def test_neither_batches_nor_threads_matter(artifact, squares, tmp_path):
    path, dataset = artifact(), open_dataset(squares)
    chosen = [{"batch_size": 1, "workers": 1}, {"batch_size": 7, "workers": 3}]
    one, other = (
        evaluate([path], dataset, tmp_path / str(i), options(**given)).records[0]
        for i, given in enumerate(chosen)
    )
    for name in one.dtype.names:
        close = np.issubdtype(one[name].dtype, np.floating)
        compare = np.testing.assert_allclose if close else np.testing.assert_array_equal
        compare(one[name], other[name], **({"rtol": 1e-5} if close else {}))


def test_artifacts_side_by_side(artifact, squares, tmp_path):
    """With other inputs, and one that can't be asked for the true class."""
    paths = [artifact(), artifact(mode="top1", rule="crop"), artifact(mode="topk", name="k.onnx")]
    dataset = open_dataset(squares)
    together = evaluate(paths, dataset, tmp_path / "all", options(faithfulness=ALL, steps=8))
    for path, records in zip(paths, together.records, strict=True):
        alone = evaluate(
            [path], dataset, tmp_path / path.parent.name, options(faithfulness=ALL, steps=8)
        )
        assert records.tobytes() == alone.records[0].tobytes()
    assert [one.asks for one in together.artifacts] == [True, False, False]
    assert len({one.name for one in together.artifacts}) == 3
    for records in together.records[1:]:
        np.testing.assert_array_equal(records["cam_class"], records["predicted"])
    labels = [sample.label for sample in dataset.samples]
    np.testing.assert_array_equal(together.records[0]["cam_class"], labels)
    found = values(together)
    assert all(len(found[key]) == 3 for key in ("insertion", "deletion", "road"))
    for comparison in results(together.records, 0.2, resamples=20)[0].artifacts[:1]:
        assert comparison.difference.value == 0


def test_an_interrupted_evaluation_goes_on(artifact, squares, tmp_path, monkeypatch):
    # Batches of as many as are written at once, as a sum's last bit depends on the batch.
    path, dataset = artifact(), open_dataset(squares)
    want = evaluate([path], dataset, tmp_path / "whole", options(batch_size=4))
    monkeypatch.setattr(run, "_WRITTEN_AT_ONCE", 4)
    scored = []

    def stops(*arguments):
        scored.append(1)
        if len(scored) == 7:
            raise KeyboardInterrupt
        return run_score(*arguments)

    run_score = stages.score_image
    monkeypatch.setattr(stages, "score_image", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate([path], dataset, tmp_path / "parts", options(batch_size=4, workers=1))
    monkeypatch.setattr(stages, "score_image", run_score)
    seen = []
    found = evaluate(
        [path], dataset, tmp_path / "parts", options(batch_size=4),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert found.resumed == 4
    assert seen == [(4, 12), (8, 12), (12, 12)]
    assert found.records[0].tobytes() == want.records[0].tobytes()
    again = evaluate([path], dataset, tmp_path / "parts", options(batch_size=4))
    assert again.resumed == 12
    assert again.records[0].tobytes() == want.records[0].tobytes()


@pytest.mark.parametrize("cut", [0, 1, 3000])
def test_half_a_record_is_done_again(artifact, squares, tmp_path, cut):
    paths, dataset = [artifact(), artifact(mode="top1")], open_dataset(squares)
    want = evaluate(paths, dataset, tmp_path, options())
    kept = [records.tobytes() for records in want.records]
    file = tmp_path / "1.records"
    file.write_bytes(file.read_bytes()[: 5 * want.records[0].dtype.itemsize + cut])
    found = evaluate(paths, dataset, tmp_path, options())
    assert found.resumed == 5
    assert [records.tobytes() for records in found.records] == kept


def test_another_evaluation_in_the_folder(artifact, squares, tmp_path):
    path, dataset = artifact(), open_dataset(squares)
    evaluate([path], dataset, tmp_path, options())
    with pytest.raises(UsageError, match="has an evaluation with other options"):
        evaluate([path], dataset, tmp_path, options(threshold=0.3))
    with pytest.raises(UsageError, match="other artifacts"):
        evaluate([artifact(mode="top1")], dataset, tmp_path, options())
    moved = tmp_path / "moved"
    shutil.copytree(squares, moved)
    (moved / "images" / "3.png").write_bytes((moved / "images" / "4.png").read_bytes())
    lines = (moved / "metadata" / "image_sizes.txt").read_text().splitlines()
    lines[3] = lines[4].replace("4.png", "3.png")
    (moved / "metadata" / "image_sizes.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(moved / "masks" / "4.png", moved / "masks" / "3.png")
    boxes = (moved / "metadata" / "localization.txt").read_text().splitlines()
    boxes[3] = boxes[4].replace("4.png", "3.png")
    (moved / "metadata" / "localization.txt").write_text("\n".join(boxes) + "\n")
    with pytest.raises(UsageError, match="other dataset"):
        evaluate([path], open_dataset(moved), tmp_path, options())


def test_an_image_that_cannot_be_decoded(artifact, squares, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(squares, broken)
    file = broken / "images" / "5.png"
    data = file.read_bytes()
    file.write_bytes(data[:60] + bytes(len(data) - 60))  # the header says nothing of it
    path, dataset = artifact(), open_dataset(broken)
    with pytest.raises(DataError, match=r"image_ids\.txt, line 6: images/5\.png can't be read"):
        evaluate([path], dataset, tmp_path / "stop", options())
    found = evaluate([path], dataset, tmp_path / "go", options(skip_bad=True))
    assert [one.line for one in found.dataset.problems] == [6]
    counted = {one.metric.key: one.images for one in results(found.records, 0.2, resamples=5)}
    assert set(counted.values()) == {11}
    again = evaluate([path], dataset, tmp_path / "go", options(skip_bad=True))
    assert again.dataset.problems == found.dataset.problems


def test_artifacts_of_other_classes(artifact, squares, tmp_path):
    other = artifact(name="other.onnx")
    from sigcam.evaluate import model

    spec = model.read_spec(other)
    assert spec.num_classes == 4
    with pytest.raises(UsageError, match="named twice"):
        evaluate([other, other], open_dataset(squares), tmp_path, options())
    with pytest.raises(UsageError, match="at least one artifact"):
        evaluate([], open_dataset(squares), tmp_path, options())
    with pytest.raises(UsageError, match="faithfulness must be of"):
        options(faithfulness=("confidence", "luck"))
