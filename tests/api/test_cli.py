"""The commands from end to end on a toy model: outputs, exit codes, what is left on disk."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from sigcam.classifier.zoo import load_model
from sigcam.runtime.explanation import Explanation

pytestmark = pytest.mark.slow

BRANCH = ["export", "--sigmoid-branch", "{branch}"]


def lines(text):
    return [line for line in text.splitlines() if line]


def test_train_writes_the_branch_and_prints_only_its_path(work):
    assert work.trained.exit_code == 0, work.trained.stderr
    assert lines(work.trained.stdout) == [str(work.branch)]
    assert work.branch.is_file()
    metrics = lines((work.folder / "branch.run" / "metrics.csv").read_text())
    assert len(metrics) == 3  # a header and two epochs


def test_export_reads_the_architecture_from_the_branch_file(work):
    assert work.exported.exit_code == 0, work.exported.stderr
    assert lines(work.exported.stdout) == [str(work.top1)]


def test_info_prints_spec_and_certificate(work, cli):
    found = cli("info", work.top1)
    assert found.exit_code == 0
    for expected in ("cam, from the sigmoid branch", "32x32", "8 images, 2 views", "cams"):
        assert expected in found.stdout
    spec = json.loads(cli("info", work.top1, "--json").stdout)
    assert spec["class_names"] == ["green", "red"]
    assert spec["parity"]["outputs"]["cams"]["max_rel"] <= 1e-4


def test_a_file_of_an_older_schema_is_refused_by_its_version(work, cli, tmp_path):
    old = tmp_path / "old.onnx"
    data = work.top1.read_bytes()
    assert data.count(b'"schema_version": 4') == 1
    old.write_bytes(data.replace(b'"schema_version": 4', b'"schema_version": 2'))
    for command in (["info", old], ["info", old, "--json"], ["explain", old, work.data]):
        found = cli(*command)
        assert (found.exit_code, found.stdout) == (1, "")
        assert f"{old}: the spec has schema version 2, this sigcam reads 4; export" in found.stderr


def test_explain_writes_json_lines_and_overlays(work, cli, tmp_path):
    out = tmp_path / "heatmaps"
    found = cli("explain", work.top1, work.data, "--json", "--out", out)
    assert found.exit_code == 0, found.stderr
    records = [json.loads(line) for line in lines(found.stdout)]
    assert len(records) == 8
    first = records[0]["explanations"][0]
    assert first["label"] in ("green", "red")
    assert 0 <= first["probability"] <= 1
    assert 0 <= first["evidence"] <= 1
    assert (first["width"], first["height"]) == (50, 40)
    names = {str(p.relative_to(out)) for p in out.rglob("*.png")}
    assert names == {f"{name}/{index}.png" for name in ("green", "red") for index in range(4)}


def test_explain_takes_globs_and_classes_by_name_and_id(work, cli):
    found = cli("explain", work.named, work.data / "red" / "*.png", "--class", "red", "--class", 0)
    assert found.exit_code == 0, found.stderr
    labels = [line.split("\t")[1] for line in lines(found.stdout)]
    assert labels == ["red", "green"] * 4
    best = cli("explain", work.named, work.data / "red" / "0.png", "--topk", 2)
    first, second = (float(line.split("\t")[2].split()[1]) for line in lines(best.stdout))
    assert first >= second


def test_explain_passes_on_what_the_backend_is_asked_for(work, cli, tmp_path):
    pytest.importorskip("openvino")
    image, cache = work.data / "red" / "0.png", tmp_path / "cache"
    backend = ["--backend", "openvino", "--mode", "throughput", "--threads", 1]
    found = cli("explain", work.top1, image, *backend, "--cache-dir", cache)
    assert found.exit_code == 0, found.stderr
    assert len(list(cache.iterdir())) == 1
    by_default = cli("explain", work.top1, image)
    assert found.stdout.split("\t")[:3] == by_default.stdout.split("\t")[:3]
    refused = cli("explain", work.top1, image, "--backend", "ort", "--precision", "bf16")
    assert refused.exit_code == 2
    assert "no option precision" in refused.stderr


def test_one_bad_image_is_reported_and_the_others_are_done(work, cli, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    good = work.data / "red" / "0.png"
    found = cli("explain", work.top1, bad, good, tmp_path / "absent.jpg")
    assert found.exit_code == 1
    assert [line.split("\t")[0] for line in lines(found.stdout)] == [str(good)]
    assert "bad.png" in found.stderr
    assert "absent.jpg" in found.stderr
    assert "2 of 3" in found.stderr


@pytest.fixture
def photographs(tmp_path):
    """Two JPEGs that are decoded smaller for the toy network's 32 pixels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    paths = [folder / "a.jpg", folder / "b.jpg"]
    image = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for path in paths:
        assert cv2.imwrite(str(path), cv2.resize(image, (320, 240)))
    return paths


def test_explain_without_overlays_decodes_no_large_image_whole(work, cli, photographs, monkeypatch):
    def never(self):
        raise AssertionError("decoded whole")

    monkeypatch.setattr("sigcam.images.decode.Encoded.decode", never)
    found = cli("explain", work.top1, *photographs, "--json")
    assert found.exit_code == 0, found.stderr
    records = [json.loads(line)["explanations"][0] for line in lines(found.stdout)]
    assert [(one["width"], one["height"]) for one in records] == [(320, 240)] * 2


def test_an_image_that_goes_before_its_overlay_is_drawn(
    work, cli, photographs, tmp_path, monkeypatch
):
    save = Explanation.save

    def gone(self, path, options):
        if self.source == str(photographs[0]):
            photographs[0].unlink()
        save(self, path, options)

    monkeypatch.setattr(Explanation, "save", gone)
    found = cli("explain", work.top1, *photographs, "--out", tmp_path / "heatmaps")
    assert found.exit_code == 1
    assert "a.jpg; check the path" in found.stderr
    assert "1 of 2 images" in found.stderr
    assert [path.name for path in (tmp_path / "heatmaps").rglob("*.png")] == ["b.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["explain", "{absent}", "{image}"], 1, "absent.onnx"),
        (["explain", "{image}", "{image}"], 1, "ONNX"),
        (["explain", "{named}", "{image}", "--class", "gren"], 2, "green"),
        (["explain", "{named}", "{image}", "--class", "7"], 2, "7"),
        (["explain", "{top1}", "{image}", "--class", "red"], 2, "--classes input"),
        (["explain", "{top1}", "{image}", "--topk", "2"], 2, "top_k"),
        (["explain", "{named}", "{image}", "--class", "red", "--topk", "2"], 2, "exclude"),
        (["explain", "{top1}", "{empty}"], 2, "no images"),
        (["explain", "{top1}", "{image}", "--backend", "magic"], 2, "ort"),
        (["explain", "{top1}"], 2, "Usage"),
        (["explain", "{top1}", ""], 2, "empty"),
        (["explain", "{top1}", "{empty}/**.png"], 2, "glob"),
        (["explain", "{named}", "{image}", "--class", "9" * 5000], 2, "class"),
        (["explain", "{top1}", "{image}", "--out", "{image}"], 2, "is an input"),
        (["explain", "{top1}", "{image}", "--out", "{branch}"], 1, "cannot write"),
        ([*BRANCH, "--out", "{empty}"], 1, "folder"),
        (["train", "--arch", "resnet18", "--data", "{image}", "--out", "{empty}"], 1, "folder"),
        (["export", "--arch", "resnet18", "--out", "{new}"], 2, "--sigmoid-branch"),
        (
            ["export", "--sigmoid-branch", "{branch}", "--classes", "best", "--out", "{new}"],
            2,
            "topK",
        ),
        ([*BRANCH, "--classes", "top9", "--out", "{new}"], 2, "9"),
        (
            ["export", "--sigmoid-branch", "{branch}", "--arch", "resnet18", "--out", "{new}"],
            1,
            "net",
        ),
        (["export", "--sigmoid-branch", "{image}", "--out", "{new}"], 1, "safetensors"),
        (["export", "--branch", "softmax", "--arch", "resnet81", "--out", "{new}"], 2, "resnet18"),
        (["train", "--arch", "resnet18", "--data", "{absent}", "--out", "{new}"], 1, "absent"),
        (["info", "{image}"], 1, "ONNX"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_have_an_exit_code_and_name_the_trouble(work, cli, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    new = tmp_path / "new.file"
    places = {
        "absent": tmp_path / "absent.onnx",
        "image": work.data / "red" / "0.png",
        "empty": tmp_path / "empty",
        "new": new,
        **{name: getattr(work, name) for name in ("named", "top1", "branch")},
    }
    found = cli(*(str(a).format(**places) for a in arguments))
    assert found.exit_code == code, found.stderr
    assert says in found.stderr
    assert found.stdout == ""
    assert not new.exists()
    assert "Traceback" not in found.stderr


def test_new_classes_trains_both_heads(work, cli, tmp_path):
    branch, model = tmp_path / "two.safetensors", tmp_path / "two.onnx"
    trained = cli(
        "train", "--arch", work.arch, "--num-classes", 5, "--new-classes",
        "--data", work.data, "--cache-dir", work.cache, "--size", 32, "--views", 2,
        "--optimizer", "lbfgs", "--out", branch,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr
    assert cli("export", "--sigmoid-branch", branch, "--out", model).exit_code == 0
    found = cli("explain", model, work.data)
    right = [line.split("\t")[1] in line.split("\t")[0] for line in lines(found.stdout)]
    assert len(right) == 8
    assert all(right)  # green and red images are told apart by their colour


def test_new_classes_of_weights_with_another_number_of_classes(work, cli, tmp_path):
    weights, branch, model = (tmp_path / n for n in ("five.pth", "two.safetensors", "two.onnx"))
    torch.save(load_model(work.arch, None, 5).model.state_dict(), weights)
    trained = cli(
        "train", "--arch", work.arch, "--weights", weights, "--num-classes", 5, "--new-classes",
        "--data", work.data, "--cache-dir", work.cache, "--size", 32, "--views", 2, "--out", branch,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr
    exported = cli("export", "--sigmoid-branch", branch, "--out", model)
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(cli("info", model, "--json").stdout)["num_classes"] == 2


def test_ctrl_c_is_no_traceback_and_training_goes_on(work, cli, tmp_path, monkeypatch):
    out = tmp_path / "late.safetensors"
    arguments = [
        "train", "--arch", work.arch, "--num-classes", 2, "--data", work.data,
        "--cache-dir", work.cache, "--size", 32, "--views", 2, "--epochs", 3, "--out", out,
    ]  # fmt: skip

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sigcam.classifier.branch_file.write_bytes", interrupted)
        stopped = cli(*arguments)
    assert stopped.exit_code == 130
    assert "Ctrl-C" in stopped.stderr
    assert not out.exists()
    assert cli(*arguments, "--resume").exit_code == 0
    assert out.is_file()
