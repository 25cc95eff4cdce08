"""The commands on a network with one logit and on one that ends in a sigmoid, from end to end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from safetensors import safe_open

from sigcam.classifier.branch_file import read_branch_info
from sigcam.core.artifact import read_spec

pytestmark = pytest.mark.slow

NETS = """
import torch
from torch import nn

def body(num_logits):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_logits),
    )

def one():
    return body(1)

def many():
    return nn.Sequential(body(3), nn.Sigmoid())
"""
FIT = ["--size", "32", "--views", "2", "--batch-size", "8", "--epochs", "3"]
COLOURS = {"blue": (0, 0, 230), "green": (0, 230, 0), "red": (230, 0, 0)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "nets.py").write_text(NETS)
    rng = np.random.default_rng(1)
    lines = ["image,label"]
    for index in range(12):
        names = [name for name in COLOURS if rng.random() < 0.5]
        image = rng.integers(0, 50, (40, 60, 3), dtype=np.uint8)
        for column, name in enumerate(names):
            image[10:30, 20 * column : 20 * column + 18] = COLOURS[name]
        assert cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
        lines.append(f"{index}.png,{'|'.join(names)}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return SimpleNamespace(folder=folder, arch=f"{folder / 'nets.py'}", lines=lines[1:])


def outputs(found):
    assert found.exit_code == 0, found.output
    return found.stdout


def test_one_logit_from_training_to_evaluation(cli, place, toy, tmp_path):
    branch, model = tmp_path / "branch.safetensors", tmp_path / "m.onnx"
    arch = f"{place.arch}:one"
    outputs(
        cli("train", "--arch", arch, "--data", toy.data, "--cache-dir", tmp_path, *FIT,
            "--out", branch)
    )  # fmt: skip
    info = read_branch_info(branch)
    assert (info.task, info.num_classes, info.class_names) == ("binary", 2, ("green", "red"))
    assert info.positive_weight == 1.0
    with safe_open(branch, "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert sorted(shapes.values()) == [(1,), (1, 8)]
    outputs(cli("export", "--sigmoid-branch", branch, "--classes", "input", "--out", model))
    assert read_spec(model).task == "binary"
    image = toy.data / "red" / "0.png"
    line = outputs(cli("explain", model, image, "--topk", "2", "--json", "--backend", "ort"))
    found = json.loads(line)["explanations"]
    assert {one["label"] for one in found} == {"green", "red"}
    for key in ("probability", "evidence"):
        assert sum(one[key] for one in found) == pytest.approx(1, abs=1e-6)
    run = tmp_path / "run"
    outputs(cli("evaluate", model, "--data", toy.data, "--out", run, "--backend", "ort",
                "--resamples", "10"))  # fmt: skip
    metrics = json.loads((run / "report.json").read_text())["metrics"]
    assert {"top1_cls", "average_drop"} <= metrics.keys()
    again = tmp_path / "centred.onnx"
    outputs(cli("export", "--arch", arch, "--branch", "softmax", "--size", "32", "--out", again))
    assert read_spec(again).task == "binary"


def test_several_classes_from_training_to_evaluation(cli, place, tmp_path):
    branch, model = tmp_path / "branch.safetensors", tmp_path / "m.onnx"
    arch, data = f"{place.arch}:many", place.folder / "list.csv"
    trained = cli("train", "--arch", arch, "--data", data, "--cache-dir", tmp_path, *FIT,
                  "--out", branch)  # fmt: skip
    outputs(trained)
    assert "mean average precision of the branch" in trained.stderr
    info = read_branch_info(branch)
    mean = np.mean([len([n for n in line.split(",")[1].split("|") if n]) for line in place.lines])
    assert info.task == "multi-label"
    assert info.class_names == ("blue", "green", "red")
    assert info.positive_weight == pytest.approx((3 - mean) / mean)
    outputs(cli("export", "--sigmoid-branch", branch, "--classes", "input", "--out", model))
    assert read_spec(model).task == "multi-label"
    explain = ["explain", model, place.folder / "0.png", "--json", "--backend", "ort"]
    every = json.loads(outputs(cli(*explain, "--topk", "3")))["explanations"]
    least = np.mean([one["probability"] for one in every[1:]])
    above = json.loads(outputs(cli(*explain, "--min-probability", str(least))))["explanations"]
    assert [one["class_id"] for one in above] == [one["class_id"] for one in every[:2]]
    run = tmp_path / "run"
    outputs(cli("evaluate", model, "--data", data, "--out", run, "--backend", "ort",
                "--resamples", "10"))  # fmt: skip
    metrics = json.loads((run / "report.json").read_text())["metrics"]
    labels = sum(len([n for n in line.split(",")[1].split("|") if n]) for line in place.lines)
    assert metrics["recall_cls"]["images"] == labels


@pytest.mark.parametrize(
    ("net", "task", "words"),
    [
        ("many", "single-label", "ends in sigmoid"),
        ("many", "binary", "has 3"),
        ("one", "multi-label", "one logit"),
    ],
)
def test_a_task_that_contradicts_the_model_is_wrong_usage(cli, place, tmp_path, net, task, words):
    found = cli("export", "--arch", f"{place.arch}:{net}", "--branch", "softmax", "--task", task,
                "--size", "32", "--out", tmp_path / "m.onnx")  # fmt: skip
    assert found.exit_code == 2
    assert words in found.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_new_classes_of_each_task(cli, place, toy, tmp_path):
    for task, data, count, rows in (
        ("binary", toy.data, 2, 1),
        ("multi-label", place.folder / "list.csv", 3, 3),
    ):
        branch = tmp_path / f"{task}.safetensors"
        outputs(
            cli("train", "--arch", toy.arch, "--num-classes", "7", "--new-classes", "--task", task,
                "--data", data, "--cache-dir", tmp_path, *FIT, "--out", branch)
        )  # fmt: skip
        info = read_branch_info(branch)
        assert (info.task, info.num_classes) == (task, count)
        with safe_open(branch, "np") as file:
            names = [n for n in file.keys() if n.endswith("weight")]  # noqa: SIM118
            assert {file.get_slice(n).get_shape()[0] for n in names} == {rows}
        model = tmp_path / f"{task}.onnx"
        outputs(cli("export", "--sigmoid-branch", branch, "--out", model))
        assert read_spec(model).task == task
