"""Makes a module of torch operators out of an ONNX graph, node by node."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.onnx import operators as operators  # fills the table
from sigcam.classifier.onnx.linear import Part, in_one_form
from sigcam.classifier.onnx.operators.table import TABLE, Call, Value, as_tensor
from sigcam.classifier.onnx.tensors import (
    Owner,
    array_of,
    attributes_of,
    constant_of,
    place,
    store,
)
from sigcam.classifier.onnx.values import needed
from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_SMALL = 64
"""Arrays of so few elements may be part of shape computations."""


@dataclass(frozen=True)
class Step:
    """A node of the graph, ready to be run.

    Attributes:
        call: what its function is told.
        inputs: the names of its input values; "" for one that is left out.
        outputs: the names of its output values.
        module: the name of the module that runs it.
    """

    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str


class Node(Owner):
    """Runs one node, so that the value which it gives has the node's name in a trace."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Value) -> Any:
        """Returns what the node's operator gives for its inputs."""
        return TABLE[self.call.operator].function(self.call, *inputs)


class OnnxGraph(Owner):
    """An ONNX graph of torch operators, images to the value of one output.

    Layers have the names of the graph's nodes, tensors those of its initializers. Floating
    tensors that are used as weights are parameters, all others buffers. The last linear layer is
    one node, with a matrix [C, N]; see `sigcam.classifier.onnx.linear`.

    Attributes:
        input_name: the name of the images in the graph.
        output_name: the name of the value that is returned.
        steps: the nodes that the output depends on, in order.
        known: what doesn't depend on the images, by the name of the value.
        tensors: name of a value in the graph to the name of the tensor that holds it.
        written_for: the number of images that the graph was written for; 1 where any will do.
        targets: name of a Reshape to the target that it has instead of the file's: one that
            doesn't fix the batch to 1 (see `sigcam.classifier.onnx.batch`), or is for new classes.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        opset: int,
        input_name: str,
        output: str,
        folder: Path | None = None,
    ) -> None:
        """Reads a graph whose operators are all in the table.

        Args:
            graph: the graph.
            opset: the version of its operators.
            input_name: the graph's input for images.
            output: the value to return.
            folder: of the files with the weights that aren't in the graph itself.

        Raises:
            ModelError: weights that aren't finite, or a constant node that can't be computed.
        """
        super().__init__()
        self.input_name, self.output_name = input_name, output
        self.known: dict[str, Any] = {}
        self.tensors: dict[str, str] = {}
        self.targets: dict[str, list[int]] = {}
        self.written_for = 1
        stored = {t.name: array_of(t, folder) for t in graph.initializer}
        nodes = []
        for node in needed(graph, output):
            if node.op_type == "Constant":
                stored[node.output[0]] = constant_of(node)
            else:
                nodes.append(node)
        calls = [_call(node, opset) for node in nodes]
        left = []
        for node, call in zip(nodes, calls, strict=True):
            if all(not name or name in stored for name in node.input):
                _fold(node, call, stored)
            else:
                left.append(Part(call, tuple(node.input), tuple(node.output)))
        self.steps = tuple(
            Step(part.call, part.inputs, part.outputs, place(self, part.call.name, Node(part.call)))
            for part in in_one_form(left, stored, output)
        )
        self._store(stored)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the output for images in the layout that the graph takes."""
        values: dict[str, Value] = {self.input_name: images}
        for step in self.steps:
            try:
                found = self._run(step, values)
            except ModelError:
                raise
            except Exception as exc:  # torch's many errors for shapes that don't go together
                raise self._failed(step, values, exc) from exc
            results = found if isinstance(found, (tuple, list)) else (found,)
            values.update(zip(step.outputs, results, strict=False))
        result: Tensor = self._value(self.output_name, values)
        return result

    def _run(self, step: Step, values: dict[str, Value]) -> Any:
        entry = TABLE[step.call.operator]
        inputs = [self._value(name, values) for name in step.inputs]
        if entry.known is not None:
            # Numbers that a shape computation takes are known, though tensors hold them too.
            known = [
                self.known.get(name) if isinstance(v, Tensor) else v
                for name, v in zip(step.inputs, inputs, strict=True)
            ]
            if all(v is not None or not n for n, v in zip(step.inputs, known, strict=True)):
                return entry.known(step.call, *known)
        for i, name in enumerate(step.inputs):
            if i in entry.static:
                inputs[i] = self._static(step, name, inputs[i])
        if step.call.name in self.targets:
            inputs[1] = self.targets[step.call.name]
        if step.call.operator != "Gather":  # it takes known numbers as they are
            like = next((v for v in inputs if isinstance(v, Tensor)), None)
            inputs = [
                as_tensor(v, like) if _is_data(v) and i not in entry.static else v
                for i, v in enumerate(inputs)
            ]
        return self.get_submodule(step.module)(*inputs)

    def _value(self, name: str, values: dict[str, Value]) -> Value:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self.tensors:
            owner, _, leaf = self.tensors[name].rpartition(".")
            return getattr(self.get_submodule(owner), leaf)
        return self.known[name]

    def _static(self, step: Step, name: str, value: Value) -> Any:
        if not isinstance(value, Tensor):
            return value
        if name in self.known:
            return self.known[name]
        raise step.call.refused(
            "shapes and limits that are known without the image",
            f"the input {name}, which is computed from it",
            "export the model with a fixed input size",
        )

    def _failed(self, step: Step, values: dict[str, Value], exc: Exception) -> ModelError:
        shapes = []
        for name in step.inputs:
            value = None
            with contextlib.suppress(KeyError):
                value = self._value(name, values)
            shapes.append("left out" if value is None else str(list(np.shape(value))))
        reason = str(exc).strip().partition("\n")[0]
        return ModelError(
            f"the node {step.call.name} ({step.call.operator}) must work for any number of images "
            f"of the given size, with inputs {', '.join(shapes)} it fails: {reason}; give the "
            "input size of the file, or export it with a dynamic batch"
        )

    def _store(self, stored: dict[str, Any]) -> None:
        """Makes parameters, buffers and known values of what the graph stores."""
        uses = defaultdict[str, list[tuple[Step, int]]](list)
        for step in self.steps:
            for i, name in enumerate(step.inputs):
                uses[name].append((step, i))
        for name in list(stored):
            array = stored.pop(name)  # it is copied, and may be large
            if uses[name] or name == self.output_name:
                self._keep(name, array, uses[name])

    def _keep(self, name: str, array: Any, uses: list[tuple[Step, int]]) -> None:
        """Keeps one stored array in the form, or forms, in which the nodes take it."""
        static = [i in TABLE[step.call.operator].static for step, i in uses]
        floating, small = array.dtype.kind == "f", array.size <= _SMALL
        trained = floating and all(_is_weight(s, i) for s, i in uses)
        trained = trained and (array.size > 1 or all(_is_bias(s, i) for s, i in uses))
        if any(static) or (small and not trained):
            self.known[name] = array
        if (all(static) and static) or (small and not floating):
            return
        if trained and not np.isfinite(array).all():
            raise ModelError(
                f"the graph's weight {name} must be finite, it holds NaN or infinite values; "
                "export the model from a good checkpoint"
            )
        value = torch.from_numpy(np.array(array))
        owner, leaf, path = store(self, name, value, trained=trained)
        self.tensors[name] = path
        if trained:
            _learn_drawing(owner, leaf, array.shape, uses)


def _call(node: onnx.NodeProto, opset: int) -> Call:
    used = len([name for name in node.output if name])
    name = node.name or node.output[0]
    return Call(name, node.op_type, opset, attributes_of(node), used)


def _fold(node: onnx.NodeProto, call: Call, stored: dict[str, Any]) -> None:
    """Computes a node whose inputs are all stored, in place of it."""
    arrays = [stored[name] if name else None for name in node.input]
    try:
        found = _computed(call, arrays)
    except ModelError:
        raise
    except Exception as exc:  # NumPy's and torch's many errors
        shapes = ", ".join("left out" if a is None else str(list(a.shape)) for a in arrays)
        reason = str(exc).strip().partition("\n")[0]
        raise call.refused(
            "inputs that it can be computed of", f"{shapes} ({reason})", "export the model anew"
        ) from exc
    stored.update(zip(node.output, found, strict=False))


def _computed(call: Call, arrays: list[Any]) -> list[Any]:
    """Returns what a node gives for arrays, as arrays."""
    entry = TABLE[call.operator]
    if entry.known is not None:
        found = entry.known(call, *arrays)
    else:
        inputs = [
            a if a is None or i in entry.static else torch.from_numpy(np.array(a))
            for i, a in enumerate(arrays)
        ]
        found = entry.function(call, *inputs)
    results = found if isinstance(found, tuple) else (found,)
    made = [v.numpy() if isinstance(v, Tensor) else np.asarray(v) for v in results]
    # Shape computations leave arrays of Python's integers.
    return [array if array.dtype != object else array.astype(np.int64) for array in made]


def _is_weight(step: Step, index: int) -> bool:
    weights = TABLE[step.call.operator].weights
    return weights == (-1,) or index in weights


def _is_bias(step: Step, index: int) -> bool:
    """Returns whether an input is a layer's bias, which one logit has one number of."""
    return step.call.operator in ("Gemm", "Conv") and index == 2


def _is_data(value: Value) -> bool:
    return value is not None and not isinstance(value, Tensor)


def _learn_drawing(
    owner: Owner, leaf: str, shape: tuple[int, ...], uses: list[tuple[Step, int]]
) -> None:
    """Notes how a weight is drawn anew, by the first operator that uses it."""
    step, index = uses[0]
    kind = step.call.operator
    if kind.endswith("Normalization"):
        owner.filled[leaf] = 1.0 if index == 1 else 0.0
    elif index == 1 and kind in ("Conv", "Gemm", "MatMul") and len(shape) > 1:
        rows_last = kind == "Conv" or (kind == "Gemm" and step.call.get("transB", 0))
        owner.fans[leaf] = int(np.prod(shape[1:])) if rows_last else int(shape[-2])
