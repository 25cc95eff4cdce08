"""Weights that several kinds of layers share, with OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino.backend import OpenVinoBackend, _import_openvino
from sigcam.runtime.backends.openvino.weights import separate_weights

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SIZE = 9
OPTIONS = {
    "throughput": {"mode": "throughput"},
    "one thread": {"threads": 1},
    "one image": {"batch_size": 1},
}


class Graph:
    """A graph of `image` and one further input for each layer, which share the weights `w`.

    Args:
        weights: the weights that the layers share.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, Sequence[int | str]] = {}
        self.constants = {"w": weights}

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def image(self, *shape: int) -> str:
        """Adds an input, whose first axis is the batch."""
        name = "image" if not self.inputs else f"image{len(self.inputs)}"
        self.inputs[name] = ["n", *shape]
        return name

    def write(self, path) -> None:
        made = {name for node in self.nodes for name in node.output}
        taken = {name for node in self.nodes for name in node.input}
        value = onnx.helper.make_tensor_value_info
        kind = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self.nodes,
            "shared",
            [value(name, kind, shape) for name, shape in self.inputs.items()],
            [value(name, kind, None) for name in sorted(made - taken)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opset = [onnx.helper.make_opsetid("", 18)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)

    def feeds(self):
        rng = np.random.default_rng(1)
        return {
            name: rng.normal(size=(1, *shape[1:])).astype(np.float32)
            for name, shape in self.inputs.items()
        }


def random(*shape):
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def convolutions(inside, outside, kernel, stride, group):
    """A convolution and the layer of its gradient; a second pair, which shares with the first."""
    graph = Graph(random(outside, inside // group, kernel, kernel))
    pad = kernel // 2
    small = (SIZE + 2 * pad - kernel) // stride + 1
    common = {"strides": [stride] * 2, "pads": [pad] * 4, "group": group}
    for name in "ab":
        into = graph.image(inside, SIZE, SIZE)
        graph.node("Conv", [into, "w"], f"{name}_conv", **common)
        into = graph.image(outside, small, small)
        graph.node("ConvTranspose", [into, "w"], f"{name}_transposed", **common)
    return graph


def products(inside, outside, forward, backward):
    """A linear layer and the layer of its gradient, each as a Gemm or a MatMul."""
    graph = Graph(random(outside, inside))
    into = graph.image(inside)
    if forward == "Gemm":
        graph.node("Gemm", [into, "w"], "forward", transB=1)
    else:
        turned = graph.node("Transpose", ["w"], "turned", perm=[1, 0])
        graph.node("MatMul", [into, turned], "forward")
    graph.node(backward, [graph.image(outside), "w"], "backward")
    return graph


def one_turned_matrix():
    """Two layers of different kinds that share what a node makes of the weights."""
    graph = Graph(random(8, 8))
    graph.node("Transpose", ["w"], "turned", perm=[1, 0])
    graph.node("MatMul", [graph.image(8), "turned"], "forward")
    graph.node("Gemm", [graph.image(8), "turned"], "backward", transB=1)
    return graph


GRAPHS = {
    **{
        f"{size} channels, kernel {kernel}, stride {stride}, {group} groups": (
            lambda args=(size, size, kernel, stride, group): convolutions(*args)
        )
        for size, group in ((6, 1), (32, 1), (8, 2), (8, 8))
        for kernel, stride in ((1, 1), (3, 1), (3, 2))
    },
    "another number of outputs": lambda: convolutions(8, 16, 3, 2, 1),
    **{
        f"{size} inputs, {forward} and {backward}": (
            lambda args=(size, size, forward, backward): products(*args)
        )
        for size in (8, 32)
        for forward in ("Gemm", "MatMul")
        for backward in ("Gemm", "MatMul")
    },
    "a matrix that isn't square": lambda: products(8, 16, "Gemm", "MatMul"),
    "one turned matrix": one_turned_matrix,
}


def close(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5 * np.abs(wanted[name]).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_layers_that_share_weights(tmp_path, name):
    graph = GRAPHS[name]()
    path = tmp_path / "model.onnx"
    graph.write(path)
    feeds = graph.feeds()
    wanted = backend_class("ort").open(path, BackendOptions(threads=1)).infer(feeds)
    for options in OPTIONS.values():
        close(OpenVinoBackend.open(path, BackendOptions(**options)).infer(feeds), wanted)
    for from_cache in (False, True):
        backend = OpenVinoBackend.open(path, BackendOptions(cache=tmp_path))
        assert backend.from_cache == from_cache
        close(backend.infer(feeds), wanted)


def copies_in(graph, path):
    """Returns the number of copies, and the bytes of all constants of the weights' size."""
    graph.write(path)
    model = _import_openvino()[1](ModelFile(path))
    copies = separate_weights(model)
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    size = graph.constants["w"].nbytes
    assert separate_weights(model) == 0
    return copies, sum(node.get_byte_size() == size for node in constants)


@pytest.mark.parametrize(
    ("graph", "copies"),
    [
        (convolutions(8, 8, 3, 1, 1), 1),  # though four layers share the weights
        (convolutions(8, 16, 3, 1, 1), 0),  # the shapes differ
        (convolutions(8, 8, 3, 1, 8), 0),  # one channel a group has no order
        (products(8, 8, "Gemm", "Gemm"), 1),
        (products(8, 16, "Gemm", "Gemm"), 0),
        (one_turned_matrix(), 1),
    ],
)
def test_only_what_needs_a_copy_gets_one(tmp_path, graph, copies):
    assert copies_in(graph, tmp_path / "model.onnx") == (copies, 1 + copies)


@pytest.mark.parametrize("stored", ["i8", "f16"])
def test_narrow_weights_stay_narrow(tmp_path, stored):
    """The weights are copied as they are stored, with the nodes that scale or widen them."""
    graph = convolutions(8, 8, 3, 1, 1)
    if stored == "i8":
        values = np.random.default_rng(3).integers(-60, 60, (8, 8, 3, 3)).astype(np.int8)
        graph.constants = {"stored": values, "scale": np.array(0.05, np.float32)}
        widen = onnx.helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"])
    else:
        graph.constants = {"stored": random(8, 8, 3, 3).astype(np.float16)}
        widen = onnx.helper.make_node("Cast", ["stored"], ["w"], to=onnx.TensorProto.FLOAT)
    graph.nodes.insert(0, widen)
    path = tmp_path / "model.onnx"
    graph.write(path)
    model = _import_openvino()[1](ModelFile(path))
    assert separate_weights(model) == 1
    kinds = [
        node.get_element_type().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and list(node.shape) == [8, 8, 3, 3]
    ]
    assert kinds == [stored] * 2
    feeds = graph.feeds()
    wanted = backend_class("ort").open(path, BackendOptions(threads=1)).infer(feeds)
    close(OpenVinoBackend.open(path, BackendOptions(threads=1)).infer(feeds), wanted)
