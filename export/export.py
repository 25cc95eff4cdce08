"""Exports an artifact, or the bare classifier that it is compared with."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.artifact import head_path
from sigcam.core.errors import ExportError, UsageError
from sigcam.core.files import check_writable
from sigcam.core.spec import (
    Branch,
    ClassSelection,
    Preprocessing,
    Profile,
    Source,
    Spec,
)
from sigcam.export.modules import (
    ArtifactGraph,
    CamGraph,
    Classifier,
    HeadGraph,
)
from sigcam.export.onnx_model import check_opset
from sigcam.export.options import GraphOptions
from sigcam.export.parity import verify as parity
from sigcam.export.staging import StagedFiles

DEFAULT_OPSET = 18


def export_artifact(
    dual: DualBranch,
    path: str | Path,
    *,
    method: str = "cam",
    branch: Branch = "sigmoid",
    nwc: bool | None = None,
    profile: Profile = "fused",
    classes: ClassSelection | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] = (),
    trained_on: str | None = None,
    has_sigmoid: bool = True,
    sigmoid_logits: bool = False,
    features: bool = False,
    head_graph: bool = False,
    method_options: Mapping[str, float] | None = None,
    external_data: bool = False,
    tolerance: float = 1e-4,
    opset: int = DEFAULT_OPSET,
) -> Spec:
    """Writes one ONNX file that gives the prediction and the evidence map.

    Args:
        dual: the classifier with its trained sigmoid branch; it isn't changed.
        path: of the file; written whole or not at all.
        method: a name in `METHODS`.
        branch: which branch the CAM weights come from; "softmax" gives the classic CAM.
        nwc: whether negative weights are clamped to 0 before the weighted sum; None for
            the method's own way (yes, but for those with a weight per position).
        profile: "fused": CAMs out; "split": features and signed CAM weights out.
        classes: which classes get a map; the predicted one when None.
        preprocessing: how an image becomes the input; ImageNet's when None.
        class_names: C names, or none.
        trained_on: what the sigmoid branch was trained on, in words.
        has_sigmoid: whether `dual` holds a trained sigmoid branch to give evidence.
        sigmoid_logits: whether all C logits of the sigmoid branch are an output too.
        features: whether the features are an output in the profile "fused" too; methods of
            several passes need them at run time.
        head_graph: whether a second file is written (model.head.onnx beside model.onnx)
            that gives maps of further classes without the backbone; implies `features`.
        method_options: numbers of the method: gamma (0.6) and similar (3) for finercam.
        external_data: whether the weights go to a file of their own, "<name>.data" beside
            `path`; those over 2 GiB always do.
        tolerance: largest error, relative to an output's largest value, to accept.
        opset: of the ONNX standard, 18 to 20.

    Returns:
        The spec that the file carries, with the parity report.

    Raises:
        UsageError: options that contradict each other or the model.
        ModelError: weights that aren't finite.
        ExportError: the graph can't be built from this model.
        ParityError: the graph doesn't compute what PyTorch computes; nothing is written.
        StorageError: a file can't be written.
    """
    check_opset(opset)
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance must be between 0 and 1, got {tolerance}")
    options = GraphOptions(
        method=method,
        branch=branch,
        nwc=nwc,
        profile=profile,
        classes=classes or ClassSelection(),
        has_sigmoid=has_sigmoid,
        sigmoid_logits=sigmoid_logits,
        features=features or head_graph,
        method_options=method_options or {},
    )
    preprocessing = _fitting(dual, preprocessing)
    path = Path(path)
    check_writable(path)
    dual.check_finite(sigmoid=has_sigmoid)
    frozen = _on_cpu(dual)
    cams = CamGraph(frozen, options)
    graph = ArtifactGraph(cams, preprocessing)
    spec = Spec(
        method=method,
        branch=branch,
        nwc=bool(options.nwc),
        target_layers=tuple(target.layer for target in dual.targets),
        profile=profile,
        classes=options.classes,
        preprocessing=preprocessing,
        num_classes=dual.num_classes,
        feature_shapes=tuple(target.layout.shape for target in dual.targets),
        source=_source(dual, trained_on, has_sigmoid),
        class_names=tuple(class_names),
        method_options=options.method_options,
        head_input=graph.head_input if head_graph else None,
    )
    with StagedFiles(path) as staged:
        inputs, dynamic = _inputs(preprocessing, options)
        main = staged.export(path, graph, inputs, dynamic, graph.output_names, opset, external_data)
        report = parity.verify(
            frozen, main.runnable, graph.output_names, options, preprocessing, tolerance
        )
        spec = dataclasses.replace(spec, parity=report)
        main.spec = spec
        if head_graph:
            head = HeadGraph(cams)
            inputs, dynamic = _head_inputs(cams, graph.head_input)
            second = staged.export(
                head_path(path), head, inputs, dynamic, head.output_names, opset, external_data
            )
            report = parity.verify_head(
                frozen, main.runnable, second.runnable, head.output_names, graph.head_input,
                options, preprocessing, tolerance,
            )  # fmt: skip
            second.spec = dataclasses.replace(spec, kind="head", parity=report)
        staged.publish()
    return spec


def export_classifier(
    dual: DualBranch,
    path: str | Path,
    preprocessing: Preprocessing | None = None,
    *,
    tolerance: float = 1e-4,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Writes the network alone, `image` to `logits`, without a spec.

    The baseline of the benchmarks: the same network with the same input handling.

    Args:
        dual: its backbone and softmax branch are exported; it isn't changed.
        path: of the file; written whole or not at all.
        preprocessing: how an image becomes the input; ImageNet's when None.
        tolerance: largest relative error to accept.
        opset: of the ONNX standard, 18 to 20.

    Raises:
        As `export_artifact`.
    """
    check_opset(opset)
    preprocessing = _fitting(dual, preprocessing)
    path = Path(path)
    check_writable(path)
    dual.check_finite(sigmoid=False)
    frozen = _on_cpu(dual)
    inputs, dynamic = _inputs(preprocessing, GraphOptions())
    with StagedFiles(path) as staged:
        graph = Classifier(frozen, preprocessing)
        staged_file = staged.export(path, graph, inputs, dynamic, ["logits"], opset, False)
        parity.verify_logits(frozen, staged_file.runnable, preprocessing, tolerance)
        staged.publish()


def _fitting(dual: DualBranch, preprocessing: Preprocessing | None) -> Preprocessing:
    height, width = dual.input_size
    preprocessing = preprocessing or Preprocessing(height, width)
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise ExportError(
            f"the preprocessing must have the size that the model was split for, {height}x{width}, "
            f"got {preprocessing.height}x{preprocessing.width}; make the DualBranch with "
            f"input_size=({preprocessing.height}, {preprocessing.width})"
        )
    return preprocessing


def _on_cpu(dual: DualBranch) -> DualBranch:
    """In evaluation mode on the CPU, leaving the caller's as it is."""
    parameter = next(dual.parameters(), None)
    if parameter is None or parameter.device.type == "cpu":
        return dual if not dual.training else copy.deepcopy(dual).eval()
    return copy.deepcopy(dual).cpu().eval()


def _inputs(
    preprocessing: Preprocessing, options: GraphOptions
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Examples and names of dynamic sizes."""
    H, W = preprocessing.height, preprocessing.width
    image = (
        torch.zeros(2, H, W, 3, dtype=torch.uint8)
        if preprocessing.layout == "uint8_nhwc"
        else torch.zeros(2, 3, H, W)
    )
    inputs, dynamic = {"image": image}, {"image": {0: "batch"}}
    if options.classes.mode == "input":
        # Three columns: a size of 1, or one that equals another, would be taken as fixed.
        inputs["class_ids"] = torch.zeros(2, 3, dtype=torch.int64)
        dynamic["class_ids"] = {0: "batch", 1: "classes"}
    return inputs, dynamic


def _head_inputs(cams: CamGraph, name: str) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    inputs = {
        name: torch.zeros(2, *cams.cut.shape),
        "class_ids": torch.zeros(2, 3, dtype=torch.int64),
    }
    return inputs, {name: {0: "batch"}, "class_ids": {0: "batch", 1: "classes"}}


def _source(dual: DualBranch, trained_on: str | None, has_sigmoid: bool) -> Source:
    packages = ("sigcam", "torch", "onnx", "onnxscript", "onnxruntime")
    return Source(
        architecture=dual.architecture,
        weights_sha256=dual.weights_sha256(),
        branch_sha256=dual.branch_sha256() if has_sigmoid else None,
        trained_on=trained_on if has_sigmoid else None,
        versions={"numpy": np.__version__, **{n: v for n in packages if (v := _version(n))}},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
