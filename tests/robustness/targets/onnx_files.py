"""Classifiers' own ONNX files, damaged, as `--arch model.onnx` reads them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper

from sigcam.classifier.onnx.inspection import inspect_file
from sigcam.classifier.onnx.load import read_classifier
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_protobuf
from tests.robustness.target import Fault, Target, use_all
from tests.support.onnx_files import classifier, constants

_INSPECTED = 0.05
"""The share of items that are inspected too, which traces the network."""


class OnnxFiles(Target):
    """A network is read, or refused, and nothing of it is traced; now and then it is inspected."""

    seconds = 10.0

    def make_corpus(self, folder: Path) -> None:
        for name, model in _models().items():
            onnx.save(model, str(folder / f"{name}.onnx"))

    def open(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._whole = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    def damage(self, rng: random.Random, scratch: Path) -> str:
        name = rng.choice(tuple(self._whole))
        whole = self._whole[name]
        if rng.random() < 0.75:
            made, done = mutate_protobuf(whole, rng)
        else:
            made, done = mutate_bytes(whole, rng, rng.choice(tuple(self._whole.values())))
        (scratch / "model.onnx").write_bytes(made)
        return f"{name}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        path = scratch / "model.onnx"
        uses = [lambda: self._read(path)]
        if rng.random() < _INSPECTED:
            uses.append(lambda: inspect_file(path))
        use_all(uses)

    def _read(self, path: Path) -> None:
        found = read_classifier(path)
        images = torch.zeros(2, found.takes.channels, *found.size)
        with torch.no_grad():
            logits = found.model(images)
        if len(logits) != 2 or logits.reshape(2, -1).shape[1] != found.num_classes:
            raise Fault("wrong", f"logits of the shape {list(logits.shape)}")


def _models() -> dict[str, onnx.ModelProto]:
    """Returns small files of several kinds: what the reader does differs for each."""
    size = ("b", 3, 12, 10)
    turned = [helper.make_node("Sub", ["x", "mean"], ["v"]),
              helper.make_node("Transpose", ["v"], ["image"], perm=[0, 3, 1, 2])]  # fmt: skip
    rounded = [
        helper.make_node("Flatten", ["p"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"]),
    ]
    figures = {"s": np.array(0.01, np.float32), "z": np.array(0, np.int8)}
    shaped = [
        helper.make_node("Shape", ["p"], ["n"]),
        helper.make_node("Gather", ["n", "first"], ["b"]),
        helper.make_node("Concat", ["b", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["p", "t"], ["f"]),
    ]
    places = {"first": np.array([0]), "rest": np.array([-1])}
    return {
        "plain": classifier(size),
        "open": classifier(("b", 3, "h", "w"), opset=17),
        "nhwc": classifier((1, 12, 10, 3), turned, weights=constants(mean=[104.0, 117.0, 124.0])),
        "quantised": classifier(size, middle=rounded, weights=figures),
        "one": classifier(
            (1, *size[1:]), middle=[helper.make_node("Reshape", ["p", "t"], ["f"])],
            weights={"t": np.array([1, -1])},
        ),
        "shapes": classifier(size, middle=shaped, weights=places),
        "softmax": classifier(
            size, back=[helper.make_node("Softmax", ["z"], ["logits"], axis=1)], logits="z", opset=9
        ),
    }  # fmt: skip
