"""Converts an artifact to 8 bits: static, per channel, with QDQ nodes.

ONNX Runtime's quantizer does the work. How it is asked to, so that the file is right on every
processor and backend:

- QDQ: the graph has standard operators only; each backend fuses them into its own kernels.
- Weights: int8, symmetric, a scale for each output channel, in 7 bits (-64 to 64). Processors
  with AVX2 or AVX-512 but without VNNI add two products of 8 bits each in 16 bits, saturating:
  255 * 127 * 2 doesn't fit, 255 * 64 * 2 does. So the 8th bit would give wrong sums there, in
  ONNX Runtime and OpenVINO alike. Depthwise convolutions aren't computed that way, and have so
  few weights that each bit shows: theirs are in 8 bits. `wide_weights` gives 8 bits to all.
- Activations: uint8 with a zero point ("uint8"), whose range a ReLU or a clip uses in full, and
  which makes that operator itself unnecessary. TensorRT takes int8 symmetric ones only ("int8").
- Biases: float32 in the file. TensorRT can't dequantise int32 ones; ONNX Runtime (from 1.21 on)
  and OpenVINO round them while loading.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType

from sigcam.convert.onnx_graph import drop_unused
from sigcam.convert.quantize.calibrate import Ranges
from sigcam.convert.quantize.selection import (
    FOLLOWERS,
    LAYERS,
    PRODUCTS,
    Selection,
)
from sigcam.convert.quantize.source import Source
from sigcam.core.errors import ExportError, UsageError

Activations = Literal["uint8", "int8"]
"""The type of rounded values between layers; see above."""

_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def to_int8(
    source: Source,
    selection: Selection,
    ranges: Ranges,
    activations: Activations = "uint8",
    *,
    wide_weights: bool = False,
) -> onnx.ModelProto:
    """Puts the selected nodes of an artifact between QuantizeLinear and DequantizeLinear.

    Args:
        source: the float32 artifact; it isn't changed.
        selection: the nodes that are to compute in 8 bits.
        ranges: the range of every value that they read and give.
        activations: type of the rounded values.
        wide_weights: whether all weights are in 8 bits, for processors with VNNI, Arm and GPUs.

    Returns:
        The converted model.

    Raises:
        UsageError: an unknown type, or nothing was selected.
        ExportError: the quantizer failed.

    Example:
        model = to_int8(source, selection, calibrate(source, selection, ...), wide_weights=True)
    """
    if activations not in _TYPES:
        raise UsageError(
            f"activations must be one of {', '.join(get_args(Activations))}, got {activations!r}"
        )
    if not selection.layers:
        raise UsageError("no layer is left to compute in 8 bits; keep fewer in float32")
    model = _with_own_weights(source.model, set(selection.layers))
    try:
        quantizer = _quantizer(model, selection, ranges, activations, wide_weights=wide_weights)
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        done: onnx.ModelProto = quantizer.model.model
        _read_unrounded(done.graph, selection)
        _guard_float_layers(done.graph, selection)
        _strip(done)
        onnx.checker.check_model(done, full_check=True)
    except Exception as exc:  # the quantizer lets through errors of many kinds
        raise ExportError(f"{source.path} can't be quantised: {exc}") from exc
    return done


def _quantizer(
    model: onnx.ModelProto,
    selection: Selection,
    ranges: Ranges,
    activations: Activations,
    *,
    wide_weights: bool,
) -> QDQQuantizer:
    """Asks ONNX Runtime's quantizer for what the head of this file says."""
    return QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),  # it asks for the type of every value
        per_channel=True,
        reduce_range=not wide_weights,
        weight_qType=QuantType.QInt8,
        activation_qType=_TYPES[activations],
        tensors_range=ranges,
        nodes_to_quantize=list(selection.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(LAYERS | FOLLOWERS),
        extra_options={
            "ActivationSymmetric": activations == "int8",
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            "TensorQuantOverrides": _depthwise_in_8_bits(model, set(selection.layers)),
        },
    )


def _depthwise_in_8_bits(model: onnx.ModelProto, layers: set[str]) -> dict[str, Any]:
    """Returns the quantizer's settings for weights of convolutions with one channel a group."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found: dict[str, Any] = {}
    for node in model.graph.node:
        if node.name in layers and node.op_type == "Conv" and shapes[node.input[1]][1] == 1:
            found[node.input[1]] = [
                {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}
            ]
    return found


def _with_own_weights(model: onnx.ModelProto, layers: set[str]) -> onnx.ModelProto:
    """Copies a model, so that no layer shares its weights with a node that stays in float32.

    The quantizer would give the rounded weights to both; the CAM weights of the softmax branch
    are rows of the matrix that the logits are computed with.
    """
    model = copy.deepcopy(model)
    kept = {n for node in model.graph.node if node.name not in layers for n in node.input}
    kept |= {value.name for value in model.graph.output}
    shared = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in kept}
    copies: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in layers:
            continue
        for index, name in enumerate(node.input):
            if name in shared and name not in copies:
                own = copy.deepcopy(shared[name])
                own.name = copies[name] = f"{name}.rounded"
                model.graph.initializer.append(own)
            node.input[index] = copies.get(name, name)
    return model


def _read_unrounded(graph: Any, selection: Selection) -> None:
    """Lets nodes in float32 read what other nodes in float32 made, not its rounded form.

    Pooled features are rounded for the softmax head, but not for the sigmoid branch.
    """
    made_in_8_bits = {
        name
        for node in graph.node
        if node.name in selection.nodes and node.op_type not in PRODUCTS
        for name in node.output
    }
    given = {value.name for value in graph.output}
    before = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"
    }
    unrounded = {
        node.output[0]: before[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in before
        and before[node.input[0]] not in made_in_8_bits
        and node.output[0] not in given
    }
    for node in graph.node:
        if node.name not in selection.nodes and node.op_type != "QuantizeLinear":
            _rename(node.input, unrounded)


def _guard_float_layers(graph: Any, selection: Selection) -> None:
    """Puts an operator that changes nothing between rounded values and layers in float32.

    A layer with a rounded input and a rounded output looks unfinished to ONNX Runtime, which
    then rounds its weights while loading (WeightBiasQuantization, seen in 1.32), and with one
    scale for all of them: worse than before. The maximum with the smallest float32 is none that
    an optimiser takes out.
    """
    rounded = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    low = "smallest float32"
    nodes = []
    for node in graph.node:
        if (
            node.op_type in LAYERS | {"ConvTranspose"}
            and node.name not in selection.layers
            and node.input[0] in rounded
            and node.input[1] not in rounded
        ):
            guarded = f"{node.name}/input"
            nodes.append(
                onnx.helper.make_node("Max", [node.input[0], low], [guarded], name=guarded)
            )
            node.input[0] = guarded
        nodes.append(copy.deepcopy(node))
    if len(nodes) > len(graph.node):
        smallest = np.array(np.finfo(np.float32).min, np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(smallest, low))
        del graph.node[:]
        graph.node.extend(nodes)


def _rename(names: Any, instead: dict[str, str]) -> None:
    for index, name in enumerate(names):
        names[index] = instead.get(name, name)


def _strip(model: onnx.ModelProto) -> None:
    """Leaves the model as the exporter does: without inner shapes, notes and unused constants."""
    model.producer_name, model.producer_version, model.doc_string = "sigcam", "", ""
    del model.graph.value_info[:]
    drop_unused(model.graph)
