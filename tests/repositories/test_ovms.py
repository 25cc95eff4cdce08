"""What is written for OpenVINO Model Server, run by OpenVINO as that server would."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.errors import UsageError
from sigcam.core.model_file import ModelFile
from sigcam.repositories.weights import separate_initializers
from sigcam.repositories.write import export_repository
from sigcam.runtime.session import load
from tests.support.fake_tensorrt import write_engine
from tests.support.tiny import seal_to, tiny_spec, with_data_file

openvino = pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")

SIZE = 12


def config_of(folder):
    """The settings of the models in a repository, by their names."""
    listed = json.loads((folder / "config.json").read_text())["model_config_list"]
    return {one["config"]["name"]: one["config"] for one in listed}


def run_as_the_server(folder, name, feeds):
    """Runs a model of a repository by OpenVINO, with what config.json says."""
    config = config_of(folder)[name]
    assert config["base_path"] == f"/models/{name}"
    (path,) = (folder / name / "1").glob("*.onnx")
    core = openvino.Core()
    settings = {**config["plugin_config"], "INFERENCE_NUM_THREADS": "1"}
    compiled = core.compile_model(core.read_model(path), config["target_device"], settings)
    found = compiled(feeds)
    return {port.get_any_name(): found[port] for port in compiled.outputs}


def test_answers_are_those_of_our_runtime(tmp_path, make_artifact) -> None:
    path = make_artifact(head_input="features")
    folder = export_repository([f"net={path}"], tmp_path / "out", "ovms")
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3, 56, 56, 3), np.uint8)
    ids = np.array([[-1, 2], [0, 1], [3, -2]])
    found = run_as_the_server(folder, "net", {"image": images, "class_ids": ids})
    with load(path, "ort") as session:
        wanted = session._model.run(images, ids)
    np.testing.assert_array_equal(found["class_ids_out"], wanted.class_ids)
    np.testing.assert_allclose(found["cams"], wanted.cams, rtol=1e-5, atol=1e-6)
    # The server takes the one ONNX file in the folder for the model.
    assert [one.name for one in (folder / "net" / "1").iterdir()] == ["model.onnx"]


def test_engines_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="no engines"):
        export_repository([write_engine(tmp_path)], tmp_path / "out", "ovms")


class Shared:
    """A graph of layers that share the square weights `w`, in the form of an artifact's file."""

    def __init__(self, path, layers, external=False):
        helper, kind = onnx.helper, onnx.TensorProto
        rng = np.random.default_rng(5)
        self.constants = {
            "w": rng.normal(size=(SIZE, SIZE)).astype(np.float32),
            "w4": rng.normal(size=(SIZE, SIZE, 1, 1)).astype(np.float32),
            "q": rng.integers(-9, 9, (SIZE, SIZE)).astype(np.int8),
            "scale": np.array(0.1, np.float32),
        }
        nodes = [helper.make_node(*one[:3], **one[3]) for one in layers]
        used = {name for node in nodes for name in node.input}
        stored = [
            onnx.numpy_helper.from_array(value, name)
            for name, value in self.constants.items()
            if name in used
        ]
        self.is_image = "w4" in used
        shape = ["n", SIZE, 2, 2] if self.is_image else ["n", SIZE]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "shared", [value("image", kind.FLOAT, shape)],
            [value("y", kind.FLOAT, None)], stored,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.helper.set_model_props(model, {"sigcam": tiny_spec().to_json()})
        self.path = seal_to(model, path)
        if external:
            with_data_file(path)

    def difference(self):
        """How far OpenVINO is from ONNX Runtime, relative to the largest value."""
        import onnxruntime

        shape = (2, SIZE, 2, 2) if self.is_image else (2, SIZE)
        feeds = {"image": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
        wanted = onnxruntime.InferenceSession(str(self.path)).run(["y"], feeds)[0]
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(self.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return np.abs(compiled(feeds)[0] - wanted).max() / np.abs(wanted).max()


LAYERS = {
    "convolution and its gradient": [
        ("Conv", ["image", "w4"], ["a"], {}), ("ConvTranspose", ["a", "w4"], ["y"], {}),
    ],
    "product and that with the transposed": [
        ("MatMul", ["image", "w"], ["a"], {}),
        ("Transpose", ["w"], ["t"], {"perm": [1, 0]}), ("MatMul", ["a", "t"], ["y"], {}),
    ],
    "both ways of Gemm": [
        ("Gemm", ["image", "w"], ["a"], {}), ("Gemm", ["a", "w"], ["y"], {"transB": 1}),
    ],
    "8 bits": [
        ("DequantizeLinear", ["q", "scale"], ["d"], {}),
        ("MatMul", ["image", "d"], ["a"], {}),
        ("Gemm", ["a", "d"], ["y"], {"transB": 1}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_two_kinds_share_no_weights(tmp_path, kind, external) -> None:
    graph = Shared(tmp_path / "model.onnx", LAYERS[kind], external)
    assert separate_initializers(graph.path) == 1
    assert graph.difference() < 1e-5
    ModelFile(graph.path).verify()
    assert read_spec(graph.path) == tiny_spec() or external
    before = graph.path.read_bytes()
    assert separate_initializers(graph.path) == 0  # they are apart now
    assert graph.path.read_bytes() == before


def test_openvino_still_needs_it(tmp_path) -> None:
    """Should this fail, OpenVINO has mended it, and the copies can go."""
    graph = Shared(tmp_path / "model.onnx", LAYERS["convolution and its gradient"])
    assert graph.difference() > 0.1


def test_layers_of_one_kind_go_on_sharing(tmp_path) -> None:
    layers = [("MatMul", ["image", "w"], ["a"], {}), ("MatMul", ["a", "w"], ["y"], {})]
    graph = Shared(tmp_path / "model.onnx", layers)
    before = graph.path.read_bytes()
    assert separate_initializers(graph.path) == 0
    assert graph.path.read_bytes() == before
