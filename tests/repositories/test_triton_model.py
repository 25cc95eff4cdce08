"""The model of Triton's Python backend, with a stand-in for what exists inside of Triton only."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

import sigcam
from sigcam.core.errors import ArtifactError
from sigcam.repositories.write import export_repository


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class TritonError:
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message, code):
        self.message, self.code = message, code


class Request:
    def __init__(self, outputs, parameters="", **inputs):
        self.outputs, self.given = outputs, parameters
        self.inputs = {name: Tensor(name, array) for name, array in inputs.items()}

    def requested_output_names(self):
        return self.outputs

    def parameters(self):
        return self.given

    def request_id(self):
        return "7"


@pytest.fixture
def module(monkeypatch):
    """The module, as it is imported in Triton."""
    triton = ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.TritonError = Tensor, TritonError
    triton.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    triton.InferenceResponse = lambda outputs=(), error=None: SimpleNamespace(
        outputs={one.name: one.array for one in outputs}, error=error
    )
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.delitem(sys.modules, "sigcam.repositories.triton_model", raising=False)
    made = importlib.import_module("sigcam.repositories.triton_model")
    yield made
    monkeypatch.delitem(sys.modules, made.__name__)


@pytest.fixture
def started(module, tmp_path, make_artifact, monkeypatch):
    """A loaded model, and the artifact that it was made of."""
    monkeypatch.setattr(module, "_check_numpy", lambda: None)
    artifact = make_artifact()
    folder = export_repository([f"net={artifact}"], tmp_path / "out", "triton") / "net-explain"
    model = module.TritonPythonModel()
    config = {"max_batch_size": 4, "parameters": {"backend": {"string_value": "ort"}}}
    model.initialize(
        {"model_repository": str(folder), "model_version": "1", "model_name": "net-explain",
         "model_instance_kind": "CPU", "model_instance_device_id": "0",
         "model_config": json.dumps(config)}
    )  # fmt: skip
    yield model, artifact
    model.finalize()


def encoded(*seeds):
    files = [
        cv2.imencode(".png", np.random.default_rng(one).integers(0, 256, (50, 70, 3)))[1].tobytes()
        for one in seeds
    ]
    return np.array(files, np.object_).reshape(-1, 1), files


def test_what_triton_has_put_together(started) -> None:
    model, artifact = started
    (first, files), (second, others) = encoded(1, 2), encoded(3)
    ids = np.array([[3, -1]])
    found = model.execute(
        [Request(["boxes", "heatmap"], '{"threshold": 0.5}', encoded_image=first),
         Request(["labels"], encoded_image=second, class_ids=ids)]
    )  # fmt: skip
    with sigcam.load(artifact, "ort") as session:
        wanted = [session.explain(one)[0] for one in files]
        named = session.explain(others[0], classes=[3, -1])
    assert found[0].outputs["boxes"].shape == (2, 1)
    for row, one in enumerate(wanted):
        boxes = json.loads(found[0].outputs["boxes"][row, 0])
        assert boxes == [list(box) for box in one.boxes(0.5)]
        np.testing.assert_allclose(found[0].outputs["heatmap"][row, 0], one.heatmap, atol=1e-6)
    labels = [[one.decode() for one in row] for row in found[1].outputs["labels"]]
    assert labels == [[one.label for one in named]]


def test_errors(started, monkeypatch) -> None:
    model, _ = started
    image, _ = encoded(1)
    wrong, good = model.execute(
        [Request(["boxes"], '{"colour": 1}', encoded_image=image),
         Request(["boxes"], encoded_image=image)]
    )  # fmt: skip
    assert wrong.error.code == "invalid"
    assert "unknown parameter 'colour'" in wrong.error.message
    assert good.error is None
    monkeypatch.setattr(model._model, "run", lambda *_, **__: 1 / 0)
    (broken,) = model.execute([Request(["boxes"], encoded_image=image)])
    assert (broken.error.code, "zero" in broken.error.message) == ("internal", False)


def test_a_triton_that_takes_new_arrays_for_empty_ones(module, tmp_path, monkeypatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"\x7fELF... numpy.core.multiarray ...")
    new.write_bytes(b"\x7fELF... numpy.core numpy._core ...")
    monkeypatch.setattr(module.np, "__version__", "2.4.0")
    module._check_numpy(new)
    with pytest.raises(ArtifactError, match="built for NumPy 1"):
        module._check_numpy(old)
    monkeypatch.setattr(module.np, "__version__", "1.26.4")
    module._check_numpy(old)
