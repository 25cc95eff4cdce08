"""Whole evaluations on a backend, against the metrics of CAMs that a Session makes."""

from __future__ import annotations

import shutil
from contextlib import closing

import numpy as np
import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import Place, Sample, open_dataset, read_masks
from sigcam.data.dataset import Polygons, RunLengths
from sigcam.evaluate import EvaluateOptions, evaluate_artifacts, stages
from sigcam.evaluate.faithfulness.confidence import confidence_drop, confidence_rise, masked_image
from sigcam.evaluate.localization.box_accuracy import score_boxes
from sigcam.evaluate.localization.pixel_precision import pixel_counts, pixel_curve
from sigcam.evaluate.localization.protocol import (
    enlarge,
    normalise,
    pixel_labels,
    place_scores,
    scale_boxes,
)
from sigcam.evaluate.results import store
from sigcam.evaluate.results.metrics import results
from sigcam.evaluate.results.store import fingerprint
from sigcam.images.decode import read_image
from sigcam.images.preprocess import place, prepare
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.session import load
from tests.support import direct_boxes

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
def test_numbers_are_those_of_a_sessions_cams(artifact, squares, tmp_path, rule):
    """One image at a time, by the public metrics, with nothing of the run's own code."""
    path, dataset = artifact(rule=rule), open_dataset(squares)
    found = values(evaluate_artifacts([path], dataset, tmp_path / "out", options()))
    boxes, pixels, before, after = [], [], [], []
    graph = open_backend(path, "ort", BackendOptions())
    with closing(graph), load(path, backend="ort") as session:
        for sample in dataset.samples:
            image = read_image(sample.path)
            [asked] = session.explain(image, classes=sample.label)
            [best] = session.explain(image)
            preprocessing = session.spec.preprocessing
            scores, _ = place_scores(asked.cam, place(preprocessing, *image.shape[:2]))
            found_in = score_boxes(scores, scale_boxes(sample.boxes, sample.size))
            boxes.append((found_in.every, found_in.largest, best.class_id == sample.label))
            inside, ignored = read_masks(sample)
            pixels.append(pixel_counts(scores, pixel_labels([inside], ignored)))
            tensor = prepare(image, preprocessing)[0]
            masked = masked_image(tensor, normalise(enlarge(best.cam, 56, 56)))
            # An image of the input's size, so that no rule changes it.
            feeds = {"image": masked[None], "class_ids": np.array([[best.class_id]])}
            logits = graph.infer(feeds, ["logits"])["logits"][0].astype(np.float64)
            powers = np.exp(logits - logits.max())
            before.append(best.probability)
            after.append(powers[best.class_id] / powers.sum())
    for key, want in direct_boxes.accuracies(boxes).items():
        accuracy = want[0] if isinstance(want, tuple) else want
        assert found[key] == [pytest.approx(accuracy, abs=1e-9)], key
    assert found["pxap"] == [pytest.approx(pixel_curve(sum(pixels)).pxap, abs=1e-9)]
    # Records have confidences in float32.
    drop, rise = confidence_drop(before, after).mean(), confidence_rise(before, after).mean()
    assert found["average_drop"] == [pytest.approx(drop, abs=1e-4)]
    assert found["increase"] == [pytest.approx(rise, abs=1e-9)]


def test_heatmaps_of_bright_rectangles_are_right(artifact, squares, tmp_path):
    """Features of 7 x 7 are coarse; still, each heatmap lies on its rectangle."""
    found = values(
        evaluate_artifacts([artifact()], open_dataset(squares), tmp_path / "out", options())
    )
    assert found["top1_cls"] == [100]
    assert found["pointing"] == [100]
    assert found["gt_known_best"][0] > 90
    assert found["pxap"][0] > 90
    assert found["energy"][0] > 60


def test_neither_batches_nor_threads_matter(artifact, squares, tmp_path):
    path, dataset = artifact(), open_dataset(squares)
    chosen = [{"batch_size": 1, "workers": 1}, {"batch_size": 7, "workers": 3}]
    one, other = (
        evaluate_artifacts([path], dataset, tmp_path / str(i), options(**given)).records[0]
        for i, given in enumerate(chosen)
    )
    for name in one.dtype.names:
        close = np.issubdtype(one[name].dtype, np.floating)
        compare = np.testing.assert_allclose if close else np.testing.assert_array_equal
        compare(one[name], other[name], **({"rtol": 1e-5} if close else {}))


@pytest.mark.slow
def test_artifacts_side_by_side(artifact, squares, tmp_path):
    """With other inputs, and one that can't be asked for the true class."""
    paths = [artifact(), artifact(mode="top1", rule="crop"), artifact(mode="topk", name="k.onnx")]
    dataset = open_dataset(squares)
    together = evaluate_artifacts(
        paths, dataset, tmp_path / "all", options(faithfulness=ALL, steps=8)
    )
    for path, records in zip(paths, together.records, strict=True):
        alone = evaluate_artifacts(
            [path], dataset, tmp_path / path.parent.name, options(faithfulness=ALL, steps=8)
        )
        assert records.tobytes() == alone.records[0].tobytes()
    assert [one.takes_class_ids for one in together.artifacts] == [True, False, False]
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
    want = evaluate_artifacts([path], dataset, tmp_path / "whole", options(batch_size=4))
    monkeypatch.setattr(store, "_WRITTEN_AT_ONCE", 4)
    scored = []

    def stops(*arguments):
        scored.append(1)
        if len(scored) == 7:
            raise KeyboardInterrupt
        return run_score(*arguments)

    run_score = stages.score_image
    monkeypatch.setattr(stages, "score_image", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate_artifacts([path], dataset, tmp_path / "parts", options(batch_size=4, workers=1))
    monkeypatch.setattr(stages, "score_image", run_score)
    seen = []
    found = evaluate_artifacts(
        [path], dataset, tmp_path / "parts", options(batch_size=4),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert found.resumed == 4
    assert seen == [(4, 12), (8, 12), (12, 12)]
    assert found.records[0].tobytes() == want.records[0].tobytes()
    again = evaluate_artifacts([path], dataset, tmp_path / "parts", options(batch_size=4))
    assert again.resumed == 12
    assert again.records[0].tobytes() == want.records[0].tobytes()


@pytest.mark.parametrize("cut", [0, 1, 3000])
def test_half_a_record_is_done_again(artifact, squares, tmp_path, cut):
    paths, dataset = [artifact(), artifact(mode="top1")], open_dataset(squares)
    want = evaluate_artifacts(paths, dataset, tmp_path, options())
    kept = [records.tobytes() for records in want.records]
    file = tmp_path / "1.records"
    file.write_bytes(file.read_bytes()[: 5 * want.records[0].dtype.itemsize + cut])
    found = evaluate_artifacts(paths, dataset, tmp_path, options())
    assert found.resumed == 5
    assert [records.tobytes() for records in found.records] == kept


def test_another_evaluation_in_the_folder(artifact, squares, tmp_path):
    path, dataset = artifact(), open_dataset(squares)
    evaluate_artifacts([path], dataset, tmp_path, options())
    with pytest.raises(UsageError, match="has an evaluation with other options"):
        evaluate_artifacts([path], dataset, tmp_path, options(threshold=0.3))
    with pytest.raises(UsageError, match="other artifacts"):
        evaluate_artifacts([artifact(mode="top1")], dataset, tmp_path, options())
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
        evaluate_artifacts([path], open_dataset(moved), tmp_path, options())


def test_an_image_that_cannot_be_decoded(artifact, squares, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(squares, broken)
    file = broken / "images" / "5.png"
    data = file.read_bytes()
    file.write_bytes(data[:60] + bytes(len(data) - 60))  # the header says nothing of it
    path, dataset = artifact(), open_dataset(broken)
    with pytest.raises(DataError, match=r"image_ids\.txt, line 6: images/5\.png can't be read"):
        evaluate_artifacts([path], dataset, tmp_path / "stop", options())
    found = evaluate_artifacts([path], dataset, tmp_path / "go", options(skip_bad=True))
    assert [one.line for one in found.dataset.problems] == [6]
    counted = {one.metric.key: one.images for one in results(found.records, 0.2, resamples=5)}
    assert set(counted.values()) == {11}
    again = evaluate_artifacts([path], dataset, tmp_path / "go", options(skip_bad=True))
    assert again.dataset.problems == found.dataset.problems


def test_artifacts_of_other_classes(artifact, squares, tmp_path):
    names = ("red", "green", "blue", "grey")
    with pytest.raises(UsageError, match=r"b\.onnx has other classes \(4\) than a\.onnx \(4\)"):
        evaluate_artifacts(
            [artifact(name="a.onnx"), artifact(name="b.onnx", class_names=names)],
            open_dataset(squares), tmp_path, options(),
        )  # fmt: skip
    assert not any(tmp_path.iterdir())


def test_wrong_artifacts_and_options(artifact, squares, tmp_path):
    path = artifact()
    with pytest.raises(UsageError, match="named twice"):
        evaluate_artifacts([path, path], open_dataset(squares), tmp_path, options())
    with pytest.raises(UsageError, match="at least one artifact"):
        evaluate_artifacts([], open_dataset(squares), tmp_path, options())
    with pytest.raises(UsageError, match="faithfulness must be of"):
        options(faithfulness=("confidence", "luck"))
    with pytest.raises(UsageError, match="threshold must be one of"):
        options(threshold=0.12345)
    with pytest.raises(UsageError, match="tolerance must be >= 0"):
        options(tolerance=-1)
    with pytest.raises(UsageError, match="steps must be at least 1"):
        options(steps=0)


def test_the_lowest_threshold(artifact, squares, tmp_path):
    """Around all that isn't 0: the gallery has boxes for it too."""
    found = evaluate_artifacts(
        [artifact()], open_dataset(squares), tmp_path, options(threshold=0.0)
    )  # fmt: skip
    assert len(found.gallery.worst) == len(found.gallery.best) == 6


def test_masks_that_are_drawn_count_in_full(tmp_path):
    """A mask that differs in one corner, or one run of many, is another data set."""
    path = tmp_path / "image.png"
    path.write_bytes(b"image")

    def of(mask, **changes):
        return fingerprint([Sample("image", path, Place(path), masks=(mask,), **changes)])

    ring = np.random.default_rng(0).random((3000, 2))
    other = ring.copy()
    other[1500, 0] += 1e-12
    assert of(Polygons((ring,))) == of(Polygons((ring.copy(),))) != of(Polygons((other,)))
    runs = np.arange(3000)
    assert of(RunLengths(runs)) != of(RunLengths(np.where(runs == 1500, 7, runs)))
    assert of(path) != of(path, ignore=(path,)) != of(path, ignore_level=128) != of(path)
