"""Finds the range of every value that may be rounded, over the calibration images.

ONNX Runtime's calibrators do the work, on a copy of the graph that ends at the logits. They
get one image at a time, and are made to merge what they keep after each: a histogram of
every value would otherwise be made of all images' activations at once, which are held in
memory till then.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.quantization import CalibrationMethod, create_calibrator

from sigcam.convert.onnx_graph import leading_to_logits
from sigcam.convert.quantize.selection import FOLLOWERS, LAYERS, Selection
from sigcam.convert.quantize.source import Source
from sigcam.core.cpus import thread_limit
from sigcam.core.errors import BackendError, DataError, StorageError, UsageError
from sigcam.core.progress import Report
from sigcam.core.scratch import scratch_folder

Method = Literal["minmax", "entropy", "percentile"]
"""How a range follows from the values. "minmax": all values are inside; "percentile": 99.99% are;
"entropy": the range whose histogram loses the least in 8 bits."""

Ranges = Any
"""ONNX Runtime's TensorsData: a name's `range_value` is its smallest and largest value."""

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_OPTIONS: dict[str, dict[str, Any]] = {"percentile": {"percentile": 99.99}}


def calibrate(
    source: Source,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    method: Method,
    threads: int | None,
    report: Report,
) -> Ranges:
    """Runs the images through the nodes that lead to the logits, and keeps the values' ranges.

    Args:
        source: the float32 artifact.
        selection: the nodes that are to compute in 8 bits; ranges of further values may come
            along.
        feeds: the graph's inputs for one image after the other.
        count: the number of images.
        method: how a range follows from the values.
        threads: threads of ONNX Runtime; None leaves it to ONNX Runtime.
        report: called with the images done and `count`.

    Returns:
        The range of every value by name.

    Raises:
        UsageError: an unknown method.
        DataError: a layer's input is the same everywhere, on all images.
        BackendError: ONNX Runtime failed.
        StorageError: the temporary files of the calibration can't be written.

    Example:
        selection = select(source)
        ranges = calibrate(
            source, selection, feeds(paths, source.spec.preprocessing), len(paths),
            method="minmax", threads=None, report=report,
        )
    """
    if method not in _METHODS:
        raise UsageError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    with scratch_folder("calibrate") as folder:
        path = folder / "to_logits.onnx"
        onnx.save(_up_to_logits(source), str(path))
        augmented = path.with_name("augmented.onnx")
        try:
            calibrator = create_calibrator(
                path,
                sorted(LAYERS | FOLLOWERS),
                augmented_model_path=str(augmented),
                calibrate_method=_METHODS[method],
                extra_options=_OPTIONS.get(method, {}),
            )
        except DecodeError as exc:
            # onnx writes a file of its own there, and doesn't notice that the disk is full.
            raise StorageError(
                f"the temporary folder {folder.parent} gave back less of a model than was written "
                "to it, as a full disk does; set TMPDIR to a folder that has room"
            ) from exc
        calibrator.infer_session = open_unfused(str(augmented), threads)
        for done, inputs in enumerate(feeds, 1):
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it prints its steps
                    calibrator.collect_data(_OneImage({"image": inputs["image"]}))
            except Exception as exc:  # ONNX Runtime's errors share no narrower base
                raise BackendError(f"ONNX Runtime failed while calibrating: {exc}") from exc
            report(done, count)
        with contextlib.redirect_stdout(io.StringIO()):
            ranges = calibrator.compute_data()
        calibrator.infer_session = None  # which holds its file open
    _check(source, selection, ranges)
    return ranges


def open_unfused(model: str | bytes, threads: int | None) -> Any:
    """Opens a graph in ONNX Runtime as it is written, so that every value in it is computed.

    Args:
        model: path of a file, or its bytes.
        threads: threads of ONNX Runtime; None leaves it to ONNX Runtime.

    Returns:
        An `onnxruntime.InferenceSession` on the CPU, in which no node is fused away.

    Example:
        >>> from onnx import helper, parser
        >>> graph = parser.parse_graph("g (float[2] x) => (float[2] y) { h = Relu(x) y = Neg(h) }")
        >>> opsets = [helper.make_opsetid("", 18)]
        >>> model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
        >>> session = open_unfused(model.SerializeToString(), threads=1)
        >>> session.run(["y"], {"x": np.array([-1, 2], np.float32)})[0].tolist()
        [-0.0, -2.0]
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    threads = thread_limit() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _OneImage:
    """One image, as the data reader that the calibrators ask for inputs."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._inputs: dict[str, Any] | None = inputs

    def get_next(self) -> dict[str, Any] | None:
        """Returns the image's inputs the first time, and None after that."""
        inputs, self._inputs = self._inputs, None
        return inputs


def _up_to_logits(source: Source) -> onnx.ModelProto:
    """Copies the part of the graph that leads to the logits."""
    graph = source.model.graph
    leading = leading_to_logits(graph, source.path)
    nodes = [node for node in graph.node if node.name in leading]
    read = {name for node in nodes for name in node.input}
    shorter = onnx.helper.make_graph(
        nodes,
        "to logits",
        [value for value in graph.input if value.name in read],
        [value for value in graph.output if value.name == "logits"],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    return onnx.helper.make_model(
        shorter, opset_imports=source.model.opset_import, ir_version=source.model.ir_version
    )


def _check(source: Source, selection: Selection, ranges: Ranges) -> None:
    """Refuses layers whose input says nothing about its range."""
    layers = set(selection.layers)
    for node in source.model.graph.node:
        if node.name not in layers:
            continue
        low, high = (float(np.ravel(end)[0]) for end in ranges[node.input[0]].range_value)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                f"the input of layer {node.name} isn't finite on the calibration images; check "
                "the classifier's weights"
            )
        if low == high:
            raise DataError(
                f"the input of layer {node.name} is {low:g} everywhere on all calibration "
                "images, so there is no range to round it to; use images of the kind that "
                "the model will see, or keep that layer in float32"
            )
