"""Keeps the part of an ONNX file before a value as the file has it: node for node, bit for bit.

What follows that value is read into torch operators, because a second head and a backward pass
are made of it. The part before needs neither, so it can run as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from sigcam.classifier.graph import attribute, clean_cuts, extract, has_batch, module_of, tensor_of
from sigcam.classifier.onnx.compare import original_logits, probe_images
from sigcam.classifier.onnx.front import Input
from sigcam.classifier.onnx.load import OnnxClassifier
from sigcam.classifier.onnx.reader import Step
from sigcam.classifier.onnx.values import OWN, needed
from sigcam.classifier.split import ORIGIN
from sigcam.classifier.trace import MARK, Traced
from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_TOLERANCE = 1e-4
"""Largest difference of the kept part from what was read of it, as a share of the largest value."""

_FLOAT = 1
_WIDTHS = {10: "float16", 11: "float64", 16: "bfloat16"}


class NotKeptError(ModelError):
    """The part before a value can't stay as the file has it; says why."""


@dataclass(frozen=True)
class KeptFront:
    """The part of an ONNX file from the images to a value.

    Attributes:
        model: that part: one input, as the file has it but for a batch that was fixed to 1, and
            one output, the value. Its operators are those of the file's own opset.
        folder: of the files that hold those of its weights that aren't in the model itself.
        takes: what its input is.
        shape: of the value, without the batch.
        rest: from the value to the end of the features that were asked for.
        nodes: the number of its nodes.
        of: the number of nodes that the file's logits depend on.
        changes: what was changed in the file's graph when it was read, in words.
    """

    model: onnx.ModelProto
    folder: Path
    takes: Input
    shape: tuple[int, ...]
    rest: fx.GraphModule
    nodes: int
    of: int
    changes: str

    @property
    def opset(self) -> int:
        """Returns the version of its operators."""
        return int(self.model.opset_import[0].version)

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Returns the name and the bytes of each of its weights."""
        return [(tensor.name, _bytes_of(tensor)) for tensor in self.model.graph.initializer]


def keep_front(features: fx.GraphModule, traced: Traced) -> KeptFront:
    """Finds as much as can be kept of the file that a classifier was read from.

    It is the same function only if `check_front` says so: a classifier may have been changed.

    Args:
        features: from images to a value [B, ...], cut out of the classifier; it isn't changed.
        traced: the classifier.

    Raises:
        NotKeptError: the classifier isn't of a file, or nothing of it can be kept; says why.

    Example:
        keep_front(dual.features, dual.softmax_head.traced).nodes  # 120
    """
    source = traced.model
    if not isinstance(source, OnnxClassifier) or source.held is None:
        raise NotKeptError("the classifier wasn't read from an ONNX file")
    node, step = last_step(features, traced, source)
    total = len(needed(source.held.model.graph, source.output_name))
    shape = tuple(int(size) for size in node.meta["val"].shape[1:])
    part = _part(source, source.held.model, step.outputs[0], shape)
    _refuse_other_precision(part)
    image = next(iter(features.graph.nodes))
    rest = extract(node, _end(features), image, attribute, "value")
    return KeptFront(
        part, source.held.path.parent, source.takes, shape,
        module_of(rest, tensor_of(features), "Rest"), len(part.graph.node), total,
        source.held.changes,
    )  # fmt: skip


def _bytes_of(tensor: onnx.TensorProto) -> int:
    from onnx.helper import tensor_dtype_to_np_dtype

    return int(math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _end(features: fx.GraphModule) -> fx.Node:
    end = features.graph.output_node().args[0]
    assert isinstance(end, fx.Node)  # noqa: S101 (the split makes it so)
    return end


def last_step(
    features: fx.GraphModule, traced: Traced, source: OnnxClassifier
) -> tuple[fx.Node, Step]:
    """Returns the last value that a node of the file gives, and that alone leads to the end.

    Args:
        features: from images to a value [B, ...].
        traced: the classifier.
        source: the graph that was read, which was traced.

    Returns:
        The value in the graph of `features`, and the node of the file.

    Raises:
        NotKeptError: there is no such value.
    """
    ends = _ends_of_modules(traced)
    steps = {step.module: step for step in source.steps if step.call.num_outputs == 1}
    image = next(iter(features.graph.nodes))
    passed = False
    for node in reversed(clean_cuts(_end(features), image)):
        step = steps.get(_module(node))
        is_end = ends.get(_module(node)) == node.meta.get(ORIGIN)
        if step is None or not is_end or not has_batch(node, image):
            continue
        passed = True
        static = all(isinstance(size, int) for size in node.meta["val"].shape[1:])
        if static and node.meta["val"].dtype == torch.float32:
            return node, step
    raise NotKeptError(
        "no value of the graph with one row for each image leads there alone"
        if passed
        else "the file's graph has no node before the layer that the maps are made of"
    )


def _ends_of_modules(traced: Traced) -> dict[str, str]:
    """Returns the name of the last operator of each module, in the whole traced graph."""
    ends = {}
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target is not MARK:
            ends[_module(node)] = node.meta.get(ORIGIN)
    return ends


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def _part(
    source: OnnxClassifier, model: onnx.ModelProto, value: str, shape: tuple[int, ...]
) -> onnx.ModelProto:
    """Cuts a graph at a value; a batch that was fixed to 1 is made dynamic."""
    import onnx

    nodes = needed(model.graph, value)
    used = {name for node in nodes for name in node.input}
    stored = [t for t in model.graph.initializer if t.name in used]
    targets = free_targets(nodes, source.targets, {t.name for t in stored})
    image = next(i for i in model.graph.input if i.name == source.input_name)
    taken = onnx.ValueInfoProto()
    taken.CopyFrom(image)
    taken.type.tensor_type.shape.dim[0].dim_param = "batch"
    given = onnx.helper.make_tensor_value_info(value, _FLOAT, ["batch", *shape])
    graph = onnx.helper.make_graph(nodes, "front", [taken], [given])
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(t for t in stored if t.name in used)
    graph.initializer.extend(targets)
    own = [o for o in model.opset_import if o.domain in OWN]
    # Before version 4 of the format, stored tensors were inputs too.
    return onnx.helper.make_model(
        graph, opset_imports=own, ir_version=max(8, model.ir_version), producer_name="sigcam"
    )


def free_targets(nodes: list[Any], targets: Mapping[str, list[int]], taken: set[str]) -> list[Any]:
    """Gives Reshapes whose target fixes the batch to 1 the one that doesn't.

    Args:
        nodes: the nodes of a graph; those Reshapes are replaced in the list.
        targets: name of a node to its target, as `OnnxGraph.targets`.
        taken: names of stored tensors; those of the new ones are added.

    Returns:
        The new targets, as stored tensors.
    """
    from onnx import numpy_helper

    found = []
    for i, node in enumerate(nodes):
        target = targets.get(node.name or node.output[0])
        if target is None:
            continue
        name = f"{node.output[0]}_target"
        while name in taken:
            name += "_"
        taken.add(name)
        changed = type(node)()
        changed.CopyFrom(node)
        changed.input[1] = name
        nodes[i] = changed
        found.append(numpy_helper.from_array(np.array(target, np.int64), name))
    return found


def _refuse_other_precision(part: onnx.ModelProto) -> None:
    """Refuses what is computed in another precision than the maps."""
    for tensor in part.graph.initializer:
        if tensor.data_type in _WIDTHS:
            raise NotKeptError(
                f"its weight {tensor.name} is {_WIDTHS[tensor.data_type]}, and maps are computed "
                "in float32"
            )
    element = part.graph.input[0].type.tensor_type.elem_type
    if element in _WIDTHS:
        raise NotKeptError(f"its input is {_WIDTHS[element]}, and images are given in float32")


def check_front(kept: KeptFront, features: fx.GraphModule) -> None:
    """Compares the kept part, for several images, with what was read of it.

    Args:
        kept: the part.
        features: from images to the same end, as it was read.

    Raises:
        NotKeptError: ONNX Runtime can't run it, or it gives something else.
    """
    image = next(iter(features.graph.nodes))
    height, width = (int(n) for n in image.meta["val"].shape[2:])
    images = probe_images(kept.takes, (height, width))
    try:
        name, content = kept.model.graph.output[0].name, kept.model.SerializeToString()
        got = original_logits(content, name, kept.takes.dynamic, images, kept.folder)
    except ModelError as exc:
        raise NotKeptError(f"ONNX Runtime can't run it for several images: {exc}") from exc
    with torch.no_grad():
        want: Tensor = features(torch.from_numpy(images))
        value = torch.from_numpy(got).reshape(len(want), *kept.shape)
        got = kept.rest(value).reshape(len(want), -1).numpy()
    rows = want.reshape(len(want), -1).numpy()
    largest = max(float(np.abs(rows).max(initial=0)), 1e-30)
    error = float(np.abs(got - rows).max(initial=0)) / largest
    if not error <= _TOLERANCE:
        raise NotKeptError(
            f"it differs by {error:.2g} from the classifier as it is now (weights that were "
            "changed after reading, perhaps)"
        )
