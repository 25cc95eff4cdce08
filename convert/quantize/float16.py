"""Stores an artifact's weights in 16 bits, with a Cast to float32 behind each.

The file is half as large, and the graph is the same: a backend folds the casts while it loads the
model and computes in float32, as exactly as the rounded weights allow; one that has 16-bit units
may use them as it sees fit. Nothing that is computed is rounded, so CAMs and gradients keep
float32's range (unlike with `sigcam build-engine --fp16`, whose engine computes in 16 bits).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx

from sigcam.convert.quantize.source import Source
from sigcam.core.errors import ExportError

Half = Literal["fp16", "bf16"]

SMALLEST_WEIGHT = 256
"""Values with fewer elements stay in float32: they weigh nothing, and may be constants whose
rounding matters, such as the normalisation's."""

_DTYPES: dict[str, tuple[int, Any]] = {
    "fp16": (onnx.TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (onnx.TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


def to_half_storage(source: Source, kind: Half) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Stores an artifact's weights in 16 bits.

    Args:
        source: the float32 artifact; it isn't changed.
        kind: "fp16": 11 bits of precision, up to 65,504; "bf16": 8 bits, float32's range.

    Returns:
        The converted model, and the names of the weights that stay in float32 because they hold
        a value that the type can't.

    Raises:
        ExportError: the file is no valid ONNX model afterwards.

    Example:
        >>> from pathlib import Path
        >>> ones = ", ".join(["1"] * 256)
        >>> text = f"g (float[1,256] x) => (float[1,1] logits) <float[256,1] w = {{{ones}}}>"
        >>> graph = onnx.parser.parse_graph(text + " { logits = MatMul(x, w) }")
        >>> source = Source(Path("model.onnx"), None, onnx.helper.make_model(graph))
        >>> half, beyond = to_half_storage(source, "fp16")
        >>> [node.op_type for node in half.graph.node], half.graph.initializer[0].name, beyond
        (['Cast', 'MatMul'], 'w.fp16', ())
    """
    model = copy.deepcopy(source.model)
    casts, stored, beyond = [], [], []
    number, dtype = _DTYPES[kind]
    taken = {name for node in model.graph.node for name in node.output}
    for tensor in model.graph.initializer:
        values = _large(tensor)
        if values is None:
            stored.append(tensor)
            continue
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype)
        if not np.isfinite(rounded.astype(np.float32)).all():
            beyond.append(tensor.name)
            stored.append(tensor)
            continue
        name = f"{tensor.name}.{kind}"
        if name in taken:
            raise ExportError(f"{source.path} has a value named {name}; export the model again")
        stored.append(
            onnx.helper.make_tensor(name, number, values.shape, rounded.tobytes(), raw=True)
        )
        casts.append(
            onnx.helper.make_node(
                "Cast", [name], [tensor.name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(stored)
    model.graph.node.extend(nodes)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # the checker's errors share no narrower base
        raise ExportError(f"{source.path} can't be stored in {kind}: {exc}") from exc
    return model, tuple(beyond)


def _large(tensor: onnx.TensorProto) -> Any:
    """Returns the values of a float32 tensor that is worth storing in 16 bits, or None."""
    if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST_WEIGHT:
        return None
    return onnx.numpy_helper.to_array(tensor)
