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
