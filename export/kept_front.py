"""Puts the kept part of an ONNX file into an exported graph, in the place of a node of ours.

While a module is exported, that node stands for the part: `KeptModule` makes it, and
`put_in_place` replaces it with the part's own nodes and weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import onnx
import onnx_ir
import torch
from onnx import defs, version_converter
from torch import Tensor, fx, nn

from sigcam.classifier.onnx.kept import KeptFront, NotKeptError, check_front, keep_front
from sigcam.classifier.trace import Traced

_DOMAIN = "sigcam.kept"
_LARGE = 1024
"""Stored tensors of more elements stay out of a conversion, which never looks at them."""


class KeptModule(nn.Module):
    """Stands for the kept part of a file, then computes what follows it.

    It can be exported with `GraphSignature.kept`, and not be run.
    """

    def __init__(self, kept: KeptFront) -> None:
        """Takes the part that follows.

        Args:
            kept: the part.
        """
        super().__init__()
        self._shape, self._is_bytes = kept.shape, kept.takes.is_bytes
        self.rest = kept.rest

    def forward(self, images: Tensor) -> Tensor:
        """Returns the end of the features, [B, ...].

        Args:
            images: normalised, float32, in the layout that the file takes.
        """
        given = images.to(torch.uint8) if self._is_bytes else images
        value = torch.onnx.ops.symbolic(
            f"{_DOMAIN}::Front",
            (given,),
            dtype=torch.float32,
            shape=(given.shape[0], *self._shape),
            version=1,
        )
        result: Tensor = self.rest(value)
        return result


def kept_for(front: fx.GraphModule, traced: Traced, opset: int) -> tuple[KeptFront, int]:
    """Returns the part of a classifier's file that is kept, in the opset that is written.

    The part is run in ONNX Runtime and compared with what was read of it, so that it is the
    same function of the same weights.

    Args:
        front: from images to the value that maps are made from, or to one after it.
        traced: the classifier.
        opset: of the graph that the part goes into.

    Returns:
        The part, and the opset that it has in the file.

    Raises:
        NotKeptError: nothing can be kept; says why.
    """
    kept = keep_front(front, traced)
    own = kept.opset
    if own != opset:
        kept = replace(kept, model=converted(kept.model, opset))
    check_front(kept, front)
    return kept, own


def described(kept: KeptFront, opset: int) -> str:
    """Says in a sentence what was kept.

    Args:
        kept: what `kept_for` gave.
        opset: the version of the operators of the file.
    """
    changes = [kept.changes] if kept.changes else []
    changes += [f"converted from opset {opset} to {kept.opset}"] if kept.opset != opset else []
    return (
        f"{kept.nodes} of the {kept.of} nodes that lead to the logits stand in the graph as the "
        f"file has them{''.join(f', {change}' for change in changes)}; the others were read into "
        f"PyTorch's operators"
    )


def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Converts a graph to another version of ONNX's operators; weights stay bit for bit.

    onnx's own converter does it. It has no way down for most operators; to a lower version a
    graph goes where each node is one of that version too: same inputs, known attributes.

    Args:
        model: the graph; it isn't changed.
        opset: the version that is wanted.

    Raises:
        NotKeptError: the graph can't be converted; names the operator.
    """
    own = int(model.opset_import[0].version)
    if own > opset:
        return _lowered(model, opset)
    with _without_weights(model) as light:
        try:
            found: onnx.ModelProto = version_converter.convert_version(light, opset)
        except Exception as exc:  # the converter's errors have no common base
            reason = str(exc).strip().splitlines()
            raise NotKeptError(
                f"onnx can't convert it from opset {own} to {opset}: "
                f"{reason[0] if reason else type(exc).__name__}"
            ) from exc
    stored = {tensor.name for tensor in found.graph.initializer}
    missing = [
        t for t in model.graph.initializer if t.name not in stored and t.name in _used(found)
    ]
    found.graph.initializer.extend(missing)
    inputs = [i for i in found.graph.input if i.name == model.graph.input[0].name]
    del found.graph.input[:]
    found.graph.input.extend(inputs)
    return found


@contextmanager
def _without_weights(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Yields a copy whose large stored tensors are inputs, so that it stays small."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        sizes = list(tensor.dims)
        if math.prod(sizes) > _LARGE:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, sizes)
            )
        else:
            graph.initializer.append(tensor)
    yield light


def _used(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input}


_REDEFINED = {"GroupNormalization": 21}
"""Operators whose meaning changed with a version, though inputs and attributes didn't."""


def _lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    own = int(model.opset_import[0].version)
    for node in model.graph.node:
        unknown = _unknown_before(node, own, opset)
        if unknown is not None:
            what = f" with {', '.join(unknown)}" if unknown else ""
            raise NotKeptError(
                f"the node {node.name or node.output[0]} ({node.op_type}{what}) of opset {own} "
                f"has no counterpart in opset {opset}, which is written"
            )
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.opset_import[0].version = opset
    return found


def _unknown_before(node: onnx.NodeProto, own: int, opset: int) -> list[str] | None:
    """Returns what an earlier opset doesn't know of a node; empty: the node itself, None: none."""
    try:
        new, old = (defs.get_schema(node.op_type, version, "") for version in (own, opset))
    except defs.SchemaError:  # an operator of a later opset
        return []
    unknown = [a.name for a in node.attribute if a.name not in old.attributes]
    same = [p.name for p in new.inputs] == [p.name for p in old.inputs]
    redefined = opset < _REDEFINED.get(node.op_type, 0) <= own
    return unknown if unknown or not same or redefined else None


def put_in_place(program: onnx_ir.Model, kept: KeptFront) -> None:
    """Replaces the node that stands for the kept part by the part itself.

    Its nodes and weights keep their names, unless those are of the graph's inputs and outputs.

    Args:
        program: what was exported of a module with a `KeptModule`; it is changed.
        kept: the part, of the same opset.
    """
    graph = program.graph
    stand_in = next(node for node in graph if node.domain == _DOMAIN)
    part = onnx_ir.from_proto(kept.model).graph
    onnx_ir.external_data.set_base_dir(part, kept.folder)
    _make_names_apart(graph, part)
    value = part.outputs[0]
    given, result = stand_in.inputs[0], stand_in.outputs[0]
    assert given is not None  # noqa: S101 (the stand-in has one input)
    onnx_ir.convenience.replace_all_uses_with(part.inputs[0], given)
    nodes, weights = list(part), list(part.initializers.values())
    part.outputs.clear()
    part.remove(nodes)
    for weight in weights:
        assert weight.name is not None  # noqa: S101 (an initializer has a name)
        del part.initializers[weight.name]
        graph.initializers[weight.name] = weight
    graph.insert_before(stand_in, nodes)
    is_output = result.is_graph_output()
    name = result.name
    value.shape, value.type = result.shape, result.type
    onnx_ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
    graph.remove(stand_in, safe=True)
    if is_output:
        value.name = name
    del program.opset_imports[_DOMAIN]


def _make_names_apart(graph: onnx_ir.Graph, part: onnx_ir.Graph) -> None:
    """Renames values and nodes that have the same name in both; the part keeps its own."""
    theirs = {v.name: v for v in _values(part)}
    ours = {v.name: v for v in _values(graph)}
    taken = theirs.keys() | ours.keys()
    fixed = {v.name for v in (*graph.inputs, *graph.outputs)}
    for name in theirs.keys() & ours.keys():
        value = theirs[name] if name in fixed else ours[name]
        _rename(value, _free(str(name), taken))
    nodes = {node.name for node in part} | {node.name for node in graph}
    for node in graph:
        if node.name in {other.name for other in part}:
            node.name = _free(str(node.name), nodes)


def _rename(value: onnx_ir.Value, name: str) -> None:
    value.name = name  # an initializer's place in its graph follows


def _free(name: str, taken: set[str | None]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
