"""`sigcam export --arch hf/FOLDER` and `sigcam explain`, on a network of transformers."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from sigcam.core.artifact import read_spec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_exported_and_explained(cli, tmp_path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier[1].weight.mul_(30)
    model.save_pretrained(tmp_path / "net")
    processor = transformers.DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    done = cli("export", "--arch", "hf/net", "--branch", "softmax", "--out", "m.onnx")
    assert done.exit_code == 0, done.output
    assert "resizes images to 36x36 whatever their aspect, and cuts; here" in done.stderr
    spec = read_spec(tmp_path / "m.onnx")
    assert (spec.class_names, spec.source.architecture) == (("cat", "dog", "owl"), "hf/net")
    assert (spec.preprocessing.height, spec.preprocessing.resize) == (32, 36)
    # An image of one colour is prepared alike by both, whatever their filters.
    image = np.full((50, 50, 3), (40, 120, 220), np.uint8)
    cv2.imwrite("a.png", image[..., ::-1])
    done = cli("explain", "m.onnx", "a.png", "--json", "--backend", "ort", "--topk", "1")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["explanations"][0]
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        want = model(pixel_values=pixels).logits.softmax(1)[0]
    assert found["label"] == config.id2label[int(want.argmax())]
    assert found["probability"] == pytest.approx(float(want.max()), abs=1e-4)


FAMILIES = {
    "ResNet": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"
    },
    "ViT": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "image_size": 32, "patch_size": 4,
    },
}  # fmt: skip


def saved(folder, family) -> None:
    """A tiny network of two classes, and its image processor, in a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **FAMILIES[family], id2label={0: "green", 1: "red"}, label2id={"green": 0, "red": 1}
    )
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    with torch.no_grad():  # fresh parameters are so small that features hardly differ
        for value in model.parameters():
            value.mul_(3 if value.dim() > 1 else 1)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_exported_and_explained(cli, toy, family, tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    saved(tmp_path / "net", family)
    monkeypatch.chdir(tmp_path)
    data = ["--data", toy.data, "--cache-dir", tmp_path / "cache"]
    trained = cli(
        "train", "--arch", "hf/net", *data, "--views", 2, "--epochs", 3, "--out", "b.safetensors"
    )
    assert trained.exit_code == 0, trained.output
    arguments = ["export", "--sigmoid-branch", "b.safetensors", "--out", "m.onnx"]
    done = cli(*arguments)
    if family == "ViT":  # its head takes one token, and the error says what works
        assert "use gradcam" in done.output
        done = cli(*arguments, "--method", "gradcam")
    assert done.exit_code == 0, done.output
    spec = read_spec(tmp_path / "m.onnx")
    assert (spec.branch, spec.class_names) == ("sigmoid", ("green", "red"))
    assert spec.source.architecture == "hf/net"
    done = cli("explain", "m.onnx", toy.data, "--json", "--out", "maps", "--backend", "ort")
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 8
    for record in records:
        found = record["explanations"][0]
        assert found["label"] in ("green", "red")
        assert 0 <= found["evidence"] <= 1
    overlay = cv2.imread(str(tmp_path / "maps" / "red" / "0.png"))
    image = cv2.imread(str(toy.data / "red" / "0.png"))
    assert overlay.shape[:2] == image.shape[:2]
