"""Tiny artifacts whose maps are known without running them, and a fake engine."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sigcam.runtime.backends.base import Backend, TensorInfo
from sigcam.runtime.session import Session
from sigcam.runtime.spec import ClassSelection, Geometry, Source, Spec

GRID = 7
# Classes look at red, green, blue; the fourth likes red and dislikes blue.
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, -1]], np.float32)
NAMES = ("red", "green", "blue", "Warm")
# What to do to an upright picture so that a viewer who honours the tag turns it upright.
STORE = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def tiny_spec(**changes):
    spec = Spec(
        method="cam",
        branch="sigmoid",
        nwc=True,
        target_layers=("pool",),
        profile="fused",
        classes=ClassSelection("input"),
        geometry=Geometry(height=56, width=56, resize=64),
        num_classes=4,
        feature_shape=(3, GRID, GRID),
        source=Source(architecture="tiny", weights_sha256="0" * 64),
        class_names=NAMES,
    )
    return replace(spec, **changes)


def _chosen(helper, spec):
    """Nodes from `logits` (and `class_ids`) to `class_ids_out`."""
    node = helper.make_node
    if spec.classes.mode == "top1":
        return [node("ArgMax", ["logits"], ["class_ids_out"], axis=1, keepdims=1)]
    if spec.classes.mode == "topk":
        return [node("TopK", ["logits", "k"], ["top", "class_ids_out"], axis=1)]
    return [
        node("TopK", ["logits", "c"], ["top", "order"], axis=1),
        node("Neg", ["class_ids"], ["negative"]),
        node("Sub", ["negative", "one"], ["rank"]),
        node("Max", ["rank", "zero"], ["rank0"]),
        node("GatherElements", ["order", "rank0"], ["ranked"], axis=1),
        node("Less", ["class_ids", "zero"], ["by_rank"]),
        node("Where", ["by_rank", "ranked", "class_ids"], ["class_ids_out"]),
    ]


def _graph(spec, weights):
    """The picture averaged to 7 x 7 colours in 0..1; logits are weighted means of these."""
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    node = helper.make_node
    size = spec.geometry.height
    cell = size // GRID
    if spec.geometry.layout == "uint8_nhwc":
        image = helper.make_tensor_value_info("image", T.UINT8, ["B", size, size, 3])
        begin = [
            node("Cast", ["image"], ["raw"], to=T.FLOAT),
            node("Transpose", ["raw"], ["planes"], perm=[0, 3, 1, 2]),
            node("Div", ["planes", "full"], ["pixels"]),
        ]
    else:
        image = helper.make_tensor_value_info("image", T.FLOAT, ["B", 3, size, size])
        begin = [node("Identity", ["image"], ["pixels"])]
    nodes = [
        *begin,
        node("AveragePool", ["pixels"], ["features"], kernel_shape=[cell] * 2, strides=[cell] * 2),
        node("ReduceMean", ["features", "space"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "columns"], ["logits"]),
        *_chosen(helper, spec),
        node("Gather", ["rows", "class_ids_out"], ["cam_weights"], axis=0),
        node("GatherElements", ["logits", "class_ids_out"], ["evidence_logits"], axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", T.FLOAT, ["B", 4]),
        helper.make_tensor_value_info("class_ids_out", T.INT64, ["B", "K"]),
        helper.make_tensor_value_info("evidence_logits", T.FLOAT, ["B", "K"]),
    ]
    if spec.profile == "fused":
        nodes += [
            node("Relu", ["cam_weights"], ["clamped"]),
            node("Reshape", ["features", "flat"], ["F"]),
            node("MatMul", ["clamped", "F"], ["flat_grids"]),
            node("Reshape", ["flat_grids", "square"], ["grids"]),
        ]
        outputs.append(helper.make_tensor_value_info("grids", T.FLOAT, ["B", "K", GRID, GRID]))
    else:
        outputs += [
            helper.make_tensor_value_info("features", T.FLOAT, ["B", 3, GRID, GRID]),
            helper.make_tensor_value_info("cam_weights", T.FLOAT, ["B", "K", 3]),
        ]
    constants = {
        "full": np.float32(255),
        "space": np.array([2, 3]),
        "rows": weights,
        "columns": np.ascontiguousarray(weights.T),
        "k": np.array([spec.classes.k]),
        "c": np.array([4]),
        "one": np.array(1),
        "zero": np.array(0),
        "flat": np.array([0, 3, GRID * GRID]),
        "square": np.array([0, -1, GRID, GRID]),
    }
    used = {name for one in nodes for name in one.input}
    inputs = [image]
    if spec.classes.mode == "input":
        inputs.append(helper.make_tensor_value_info("class_ids", T.INT64, ["B", "K"]))
    stored = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
        if name in used
    ]
    return helper.make_graph(nodes, "tiny", inputs, outputs, stored)


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory):
    """make_artifact(spec_text=None, weights=..., **spec changes) -> path of an .onnx file."""
    import onnx

    def make(spec_text=None, weights=WEIGHTS, metadata=True, **changes):
        spec = tiny_spec(**changes)
        opsets = [onnx.helper.make_opsetid("", 18)]
        model = onnx.helper.make_model(_graph(spec, weights), opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        entries = {"other": "x", "sigcam": spec_text or spec.to_json()} if metadata else {}
        onnx.helper.set_model_props(model, entries)
        path = tmp_path_factory.mktemp("artifact") / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


class FakeBackend(Backend):
    """Gives for each picture what `answer(picture)` says: logits [C] and grids [K, h, w]."""

    name = "fake"

    def __init__(self, spec, answer):
        geometry = spec.geometry
        shape = (None, geometry.height, geometry.width, 3)
        self.inputs = (TensorInfo("image", np.dtype(np.uint8), shape),)
        self.outputs = tuple(
            TensorInfo(name, np.dtype(dtype), shape)
            for name, dtype, shape in (
                ("logits", np.float32, (None, spec.num_classes)),
                ("class_ids_out", np.int64, (None, 1)),
                ("grids", np.float32, (None, 1, GRID, GRID)),
            )
        )
        self.answer = answer
        self.batches = []
        self.closed = False

    @classmethod
    def open(cls, path, options):
        raise NotImplementedError

    def _infer(self, feeds, wanted):
        images = feeds["image"]
        self.batches.append(len(images))
        answers = [self.answer(image) for image in images]
        logits = np.stack([logits for logits, _ in answers]).astype(np.float32)
        values = {
            "logits": logits,
            "class_ids_out": logits.argmax(1)[:, None],
            "grids": np.stack([grids for _, grids in answers]).astype(np.float32),
        }
        return {name: values[name] for name in wanted}

    def close(self):
        self.closed = True


@pytest.fixture
def fake_session():
    """fake_session(answer, **session options) -> Session with a FakeBackend, top1."""

    def make(answer, **options):
        spec = tiny_spec(classes=ClassSelection("top1"))
        return Session(spec, FakeBackend(spec, answer), **options)

    return make


@pytest.fixture(scope="session")
def spec_of():
    """tiny_spec, for tests that need a spec without a file."""
    return tiny_spec


@pytest.fixture(scope="session")
def jpeg():
    """jpeg(image, orientation=1) -> JPEG bytes; the tag says how to turn the stored pixels."""

    def encode(image, orientation=1, quality=95):
        data = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1].tobytes()
        # TIFF header, one IFD with the one entry 0x0112 (SHORT), no next IFD.
        tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0])
        content = b"Exif\0\0" + tiff + b"\0\0\0\0"
        segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
        return data[:2] + segment + data[2:]

    return encode


@pytest.fixture(scope="session")
def stored():
    """Turns an upright picture as a file of this EXIF orientation stores it."""
    return lambda picture, orientation: np.ascontiguousarray(STORE[orientation](picture))
