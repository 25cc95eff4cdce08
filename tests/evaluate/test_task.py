"""Evaluation of multi-label and binary artifacts, on images whose maps are known."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.data import open_dataset
from sigcam.evaluate import EvaluateOptions, MosaicOptions, evaluate_artifacts, evaluate_mosaics
from sigcam.evaluate.reports import summarise, write_reports
from sigcam.images.preprocess import prepare
from tests.evaluate.conftest import COLOURS
from tests.support.tiny import WEIGHTS, features_of

STEEP = 30 * WEIGHTS
CLASSES = ("red", "green", "blue", "warm")
PLAIN = Preprocessing(56, 56, "stretch", mean=(0, 0, 0), std=(1, 1, 1), layout="float32_nchw")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """COCO images with one or two coloured rectangles, or none."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "val").mkdir()
    annotations, images = [], []
    layout = [[(0, (4, 6, 30, 28))], [(0, (2, 2, 20, 40)), (2, (40, 10, 30, 40))], [], [
        (1, (30, 20, 40, 30))], [(1, (0, 0, 25, 25)), (0, (50, 30, 28, 28))]]  # fmt: skip
    for index, things in enumerate(layout):
        image = np.full((60, 80, 3), 10, np.uint8)
        for colour, (x, y, w, h) in things:
            image[y : y + h, x : x + w] = COLOURS[colour]
            annotations.append({"image_id": index, "category_id": colour, "bbox": [x, y, w, h]})
        assert cv2.imwrite(str(folder / "val" / f"{index}.png"), image[..., ::-1])
        images.append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 60})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "list.json").write_text(json.dumps(content))
    return folder


def logits_of(file):
    image = cv2.imread(str(file))[..., ::-1]
    return STEEP @ features_of(prepare(np.ascontiguousarray(image), PLAIN)[0]).mean((1, 2))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def options(*faithfulness, **more):
    return EvaluateOptions(backend="ort", faithfulness=faithfulness, workers=2, **more)


def test_every_class_of_an_image_is_one_record(artifact, scenes, tmp_path):
    path = artifact(weights=STEEP, task="multi-label", signed=False)
    data = open_dataset(scenes, "coco", multi_label=True)
    found = evaluate_artifacts([path], data, tmp_path, options("confidence"))
    pairs = [(0, 0), (1, 0), (1, 2), (2, None), (3, 1), (4, 0), (4, 1)]
    names = [(int(s.name[0]), s.label) for s in found.dataset.samples]
    assert names == pairs
    assert "5 images, measured once for each of their classes: 7 maps" in found.dataset.notes
    [records] = found.records
    for (index, label), record in zip(pairs, records, strict=True):
        logits = logits_of(scenes / "val" / f"{index}.png")
        if label is None:
            label = int(logits.argmax())
            assert not record["has_boxes"]
            assert record["correct"] == -1
        else:
            assert record["has_boxes"]
            assert record["pointing"] == 1  # on this class's own object
            assert record["correct"] == (sigmoid(logits[label]) >= 0.5)
        assert (record["predicted"], record["cam_class"]) == (label, label)
        assert record["probability"] == pytest.approx(sigmoid(logits[label]), rel=1e-4)
        assert 0 <= record["after"] <= 1


def test_the_report_names_recall(artifact, scenes, tmp_path):
    path = artifact(weights=STEEP, task="multi-label")
    data = open_dataset(scenes, "coco", multi_label=True)
    found = evaluate_artifacts([path], data, tmp_path / "run", options("confidence"))
    summary = summarise(found, resamples=10)
    keys = {one.metric.key: one for one in summary.results}
    assert "top1_cls" not in keys
    assert keys["recall_cls"].metric.label == "Recall Cls"
    assert keys["recall_cls"].images == 6
    files = {one.name: one for one in write_reports(summary, found.gallery, tmp_path / "out")}
    assert "Multi-label: every class of an image" in files["report.html"].read_text()
    rows = list(csv.reader(files["images.csv"].read_text().splitlines()))
    assert [row[1] for row in rows[1:]] == ["0", "0", "2", "", "1", "0", "1"]


def test_an_artifact_that_chooses_its_classes_is_refused(artifact, scenes, tmp_path):
    path = artifact(mode="top1", weights=STEEP, task="multi-label")
    data = open_dataset(scenes, "coco", multi_label=True)
    with pytest.raises(UsageError, match="is multi-label and chooses its classes itself"):
        evaluate_artifacts([path], data, tmp_path, options())


def test_tasks_are_not_mixed(artifact, scenes, tmp_path):
    paths = [artifact(task="multi-label"), artifact(name="other.onnx")]
    data = open_dataset(scenes, "coco", multi_label=True)
    with pytest.raises(UsageError, match=r"task of other\.onnx is single-label"):
        evaluate_artifacts(paths, data, tmp_path, options())


def test_a_single_label_artifact_refuses_several_classes(artifact, scenes, tmp_path):
    data = open_dataset(scenes, "coco", multi_label=True)
    with pytest.raises(DataError, match="every image needs a class"):
        evaluate_artifacts([artifact()], data, tmp_path, options())


def test_a_very_low_probability_has_a_drop(artifact, scenes, tmp_path):
    path = artifact(weights=-900 * WEIGHTS, task="multi-label")
    data = open_dataset(scenes, "coco", multi_label=True)
    found = evaluate_artifacts([path], data, tmp_path, options("confidence"))
    assert (found.records[0]["probability"] > 0).all()
    assert summarise(found, resamples=5).results


CONTRASTS = 30 * np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, 1]], np.float32)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """24 images of one colour or white: two have two classes, and three have a wrong one."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(2)
    lines = ["image,label"]
    for index in range(24):
        colour = index % 4
        image = rng.integers(0, 20, (56, 56, 3), np.uint8)
        image[10:46, 10:46] = (*COLOURS, (255, 255, 255))[colour]
        assert cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
        label = CLASSES[(colour + 1) % 3 if index >= 20 and colour < 3 else colour]
        lines.append(f"{index}.png,{label}" + ("|warm" if index in (0, 1) else ""))
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_mosaics_are_of_images_of_one_class_that_are_predicted(artifact, colours, tmp_path):
    path = artifact(weights=CONTRASTS, task="multi-label")
    data = open_dataset(colours, multi_label=True)
    found = evaluate_mosaics([path], data, tmp_path / "a", MosaicOptions(2), options())
    assert "images of several classes or of none, not used in mosaics: 2" in found.dataset.notes
    assert "19 of 22 images are classified right by all artifacts" in found.dataset.notes[-1]
    for mosaic in found.dataset.samples:
        assert {int(tile.name.split(".")[0]) % 4 for tile in mosaic.tiles} == {0, 1, 2, 3}
        assert all(int(tile.name.split(".")[0]) not in (0, 1, 20, 21, 22) for tile in mosaic.tiles)
    with pytest.raises(DataError, match="19 of 22 images are classified right"):
        evaluate_mosaics(
            [path], data, tmp_path / "b", MosaicOptions(2, min_right=0.95), options()
        )  # fmt: skip


def test_the_command_reads_several_classes(artifact, scenes, tmp_path):
    from click.testing import CliRunner

    from sigcam.cli import main

    path = artifact(weights=STEEP, task="multi-label")
    arguments = [
        "evaluate", path, "--data", scenes, "--format", "coco", "--out", tmp_path / "run",
        "--backend", "ort", "--faithfulness", "none", "--resamples", "10",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metrics"]["recall_cls"]["images"] == 6
