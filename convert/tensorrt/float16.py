"""An artifact's graph in float16, apart from what float16 can't hold.

ONNX Runtime's converter does the work. The nodes that lead to the logits become float16: they
take nearly all of the time. What comes after them (the sigmoid branch, the backward pass, the
sums of the CAMs) stays float32: gradients of a mean over many positions lie near the smallest
numbers of float16, and gradcam++ takes their cubes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sigcam.convert.onnx_graph import leading_to_logits, name_nodes
from sigcam.core.errors import ArtifactError, BackendUnavailableError, UsageError

_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType
_PRODUCTS = frozenset({"Gemm", "MatMul", "Einsum"})


def to_half(path: Path, *, all_products: bool = False) -> bytes:
    """Converts the graph of an artifact to float16; its inputs and outputs keep their types.

    Args:
        path: the .onnx file; weights in a file beside it are read too.
        all_products: whether matrix products after the logits become float16 as well.
            TensorRT-RTX has no float32 ones for compute capability 7.5.

    Returns:
        The converted ONNX model, with all weights in it.

    Raises:
        BackendUnavailableError: onnx or onnxruntime isn't installed.
        ArtifactError: the file can't be converted, or has no output `logits`.
        UsageError: the converted model is over 2 GiB, which one ONNX file can't be.

    Example:
        Path("model-fp16.onnx").write_bytes(to_half(Path("model.onnx")))
    """
    try:
        import onnx
        from onnxruntime.transformers import float16
    except ImportError as exc:
        raise BackendUnavailableError(
            f"converting to float16 needs the packages onnx and onnxruntime ({exc}); install "
            'them with `pip install "sigcam[export]"`'
        ) from exc
    try:
        model = onnx.load(str(path))
        own = name_nodes(model.graph)
        kept = _after_the_logits(model.graph, path, all_products)
        converted = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=kept
        )
    except ArtifactError:
        raise
    except Exception as exc:  # the converter's errors share no narrower base
        raise ArtifactError(
            f"{path} can't be converted to float16: {exc}; build the engine in float32"
        ) from exc
    _join_casts(converted.graph, own)
    try:
        return bytes(converted.SerializeToString())
    except Exception as exc:  # protobuf's error differs between its implementations
        raise UsageError(
            f"{path} is too large to be converted ({exc}); build the engine in float32"
        ) from exc


def _after_the_logits(graph: Any, path: Path, all_products: bool) -> list[str]:
    """Lists the nodes to keep in float32: those that the logits don't depend on, by name."""
    before = leading_to_logits(graph, path)
    return [
        node.name
        for node in graph.node
        if node.name not in before and not (all_products and node.op_type in _PRODUCTS)
    ]


def _join_casts(graph: Any, own: set[str]) -> None:
    """Takes out casts to float16 and back, which the converter puts between kept nodes.

    Such a pair would round values that are float32 before it and after it.

    Args:
        graph: the converted graph, which is changed.
        own: names of the nodes that the graph had before; their casts stay, as they may begin
            with bytes.
    """
    to = {
        node.output[0]: (node.input[0], attribute.i)
        for node in graph.node
        if node.op_type == "Cast" and node.name not in own
        for attribute in node.attribute
        if attribute.name == "to"
    }
    half = {name for name, (_, kind) in to.items() if kind == _FLOAT16}
    instead = {
        name: to[source][0]
        for name, (source, kind) in to.items()
        if kind == _FLOAT and source in half
    }
    # An output of the graph can't be replaced by what it was made of, but the other way round.
    outputs = {value.name for value in graph.output}
    renamed = {source: name for name, source in instead.items() if name in outputs}
    kept = []
    for node in graph.node:
        source = instead.get(node.output[0]) if node.op_type == "Cast" else None
        if source is not None and renamed.get(source, node.output[0]) == node.output[0]:
            continue  # its readers read the source now, or the source has its name
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(instead.get(name, name), instead.get(name, name))
        for index, name in enumerate(node.output):
            node.output[index] = renamed.get(name, name)
        kept.append(node)
    _rearrange(graph, kept, outputs)


def _rearrange(graph: Any, nodes: list[Any], outputs: set[str]) -> None:
    """Puts the nodes in order, so that each value is made once and none that no output needs."""
    made_by: dict[str, Any] = {}
    for node in nodes:
        for name in node.output:
            made_by.setdefault(name, node)  # the converter makes some casts several times
    ordered: list[Any] = []
    done: set[str] = set()
    pending = sorted(outputs, reverse=True)
    while pending:
        node = made_by.get(pending[-1])
        if node is None or node.name in done:
            pending.pop()
            continue
        missing = [n for n in node.input if n in made_by and made_by[n].name not in done]
        if missing:
            pending += missing
            continue
        done.add(node.name)
        ordered.append(copy.deepcopy(node))
    del graph.node[:]
    graph.node.extend(ordered)
