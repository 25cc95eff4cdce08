"""Tiny artifacts whose maps are known without running them, and a fake backend."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sigcam.core.artifact import read_spec
from sigcam.core.spec import ClassSelection
from sigcam.runtime.backends.base import Backend, TensorInfo
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session
from tests.support.tiny import GRID, WEIGHTS, artifact_graph, head_graph, tiny_spec, write

# What to do to an upright image so that a viewer who honours the tag turns it upright.
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


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory):
    """make_artifact(spec_text=None, weights=..., **spec changes) -> path of an .onnx file.

    See `tiny.artifact_graph` for head, emit and per_position. With `head_input`, the head
    graph is written beside it.
    """
    import onnx

    def make(
        spec_text=None,
        weights=WEIGHTS,
        metadata=True,
        head="linear",
        emit=(),
        per_position=False,
        **changes,
    ):
        spec = tiny_spec(**changes)
        path = tmp_path_factory.mktemp("artifact") / "model.onnx"
        if spec.head_input is not None:
            emit = {*emit, spec.head_input}
            second = tiny_spec(**changes, kind="head")
            graph = head_graph(onnx, second, weights, head)
            there = write(onnx, graph, path.with_name("model.head.onnx"), second.to_json())
            spec = replace(spec, head_digest=read_spec(there).digest)
        graph = artifact_graph(onnx, spec, weights, head, emit, per_position)
        return write(onnx, graph, path, (spec_text or spec.to_json()) if metadata else None)

    return make


class FakeBackend(Backend):
    """Gives for each image what `answer(image)` says: logits [C] and CAMs [K, h, w]."""

    name = "fake"

    def __init__(self, spec, answer):
        preprocessing = spec.preprocessing
        shape = (None, preprocessing.height, preprocessing.width, 3)
        self.inputs = (TensorInfo("image", np.dtype(np.uint8), shape),)
        self.outputs = tuple(
            TensorInfo(name, np.dtype(dtype), shape)
            for name, dtype, shape in (
                ("logits", np.float32, (None, spec.num_classes)),
                ("class_ids_out", np.int64, (None, 1)),
                ("cams", np.float32, (None, 1, GRID, GRID)),
            )
        )
        self.answer = answer
        self.batches = []
        self.closed = False

    @classmethod
    def _open(cls, model, options):
        raise NotImplementedError

    def _infer(self, feeds, wanted):
        images = feeds["image"]
        self.batches.append(len(images))
        answers = [self.answer(image) for image in images]
        logits = np.stack([logits for logits, _ in answers]).astype(np.float32)
        values = {
            "logits": logits,
            "class_ids_out": logits.argmax(1)[:, None],
            "cams": np.stack([cams for _, cams in answers]).astype(np.float32),
        }
        return {name: values[name] for name in wanted}

    def close(self):
        self.closed = True


@pytest.fixture
def fake_session():
    """fake_session(answer, **session options) -> Session with a FakeBackend, top1."""

    def make(answer, **options):
        spec = tiny_spec(classes=ClassSelection("top1"))
        return Session(ExportedModel(spec, FakeBackend(spec, answer)), **options)

    return make


class SplitBackend(FakeBackend):
    """Gives the same features and CAM weights for every batch."""

    def __init__(self, spec, features, weights):
        super().__init__(spec, None)
        given = {"features": features, "cam_weights": weights}
        self.values = {
            "logits": np.zeros((1, spec.num_classes), np.float32),
            "class_ids_out": np.zeros((1, 1), np.int64),
            **given,
        }
        self.outputs = tuple(TensorInfo(n, a.dtype, a.shape) for n, a in self.values.items())

    def _infer(self, feeds, wanted):
        return {name: self.values[name] for name in wanted}


@pytest.fixture
def fake_split_session():
    """fake_split_session(features, cam_weights) -> Session of the profile "split", top1."""

    def make(features, weights):
        spec = tiny_spec(classes=ClassSelection("top1"), profile="split")
        return Session(ExportedModel(spec, SplitBackend(spec, features, weights)))

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
    """Turns an upright image as a file of this EXIF orientation stores it."""
    return lambda image, orientation: np.ascontiguousarray(STORE[orientation](image))
