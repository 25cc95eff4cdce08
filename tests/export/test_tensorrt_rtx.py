"""TensorRT-RTX's builder takes every exported graph. It works without a GPU."""

from __future__ import annotations

import dataclasses

import pytest

from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact, export_classifier
from tests.support.methods import WITH_WEIGHTS

pytestmark = pytest.mark.slow

trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")

SELECTIONS = {
    "top1": ClassSelection(),
    "top3": ClassSelection("topk", 3),
    "input": ClassSelection("input"),
}
SIZES = {"batch": (1, 2, 8), "classes": (1, 2, 5)}
"""Smallest, usual and largest, as an engine wants them."""


class Recorder(trt.ILogger):
    """Keeps the errors, for the assertion to show."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


def build(path, dynamic):
    """Parses and compiles; returns the network's output names and the engine's bytes."""
    logger = Recorder()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(path))
    problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert parsed, problems
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        fixed = list(tensor.shape)
        shapes = []
        for rank in range(3):
            names = dynamic[tensor.name]
            shapes.append([SIZES[names[a]][rank] if a in names else s for a, s in enumerate(fixed)])
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.errors
    return [network.get_output(i).name for i in range(network.num_outputs)], engine


def cases():
    """cam with each option; the others on a head whose backward pass is traced."""
    for profile in ("fused", "split"):
        for selection in SELECTIONS:
            yield "toy", "cam", profile, selection
    for index, method in enumerate(m for m in WITH_WEIGHTS if m != "cam"):
        selection = list(SELECTIONS)[index % 3]
        yield "mlp", method, "split" if index % 2 else "fused", selection


@pytest.mark.parametrize(("net", "method", "profile", "selection"), list(cases()))
def test_an_artifact_compiles(tmp_path, make, nets, preprocessing, net, method, profile, selection):
    dual = make(nets[net])
    path = tmp_path / "model.onnx"
    every = selection == "top3"
    branch = "softmax" if every else "sigmoid"
    layout = "float32_nchw" if every else "uint8_nhwc"
    export_artifact(
        dual,
        path,
        ExportOptions(
            method=method,
            profile=profile,
            branch=branch,
            classes=SELECTIONS[selection],
            preprocessing=dataclasses.replace(preprocessing, layout=layout),
            sigmoid_logits=every,
        ),
    )
    names, engine = build(path, {"image": {0: "batch"}, "class_ids": {0: "batch", 1: "classes"}})
    wanted = ["logits", "class_ids_out", "evidence_logits"]
    wanted += ["sigmoid_logits"] if every else []
    wanted += ["cams"] if profile == "fused" else ["features", "cam_weights"]
    assert names == wanted
    assert engine.nbytes > 1000


def test_the_bare_classifier_compiles(tmp_path, dual, preprocessing):
    export_classifier(dual, tmp_path / "c.onnx", ExportOptions(preprocessing=preprocessing))
    names, _ = build(tmp_path / "c.onnx", {"image": {0: "batch"}})
    assert names == ["logits"]
