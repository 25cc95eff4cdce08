"""Looks at an ONNX file and says what is in it, and what stands in the way of reading it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.last_layer import LastLayer, last_layer
from sigcam.classifier.onnx.checks import problems, untranslated
from sigcam.classifier.onnx.file import OnnxFile, read_onnx
from sigcam.classifier.onnx.front import Input, find_input, inputs_of
from sigcam.classifier.onnx.load import OnnxClassifier, ReadClassifier, classifier_of
from sigcam.classifier.onnx.outputs import chosen_output
from sigcam.classifier.onnx.plain import plain_file
from sigcam.classifier.onnx.values import FLOATS, HALVES, OWN, counted, described, needed, opset_of
from sigcam.core.errors import SigcamError
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")


@dataclass(frozen=True)
class Graph:
    """What a file says without being read as a classifier.

    Attributes:
        path: the file.
        size: of it and the files beside it that hold its weights, in bytes.
        beside: the names of these files.
        sha256: the hash of the file itself.
        producer: the package that wrote it, with its version; "" where the file doesn't say.
        ir_version: the version of the file's form.
        opsets: domain to version; ONNX's own domain is "ai.onnx".
        inputs, outputs: name to type and shape in words.
        operators: operator to the number of its nodes, the most frequent first.
        untranslated: the operators that the reader knows no form of, likewise.
        parameters: the number of stored floating values.
        rounded: the number of QuantizeLinear and DequantizeLinear nodes.
        half: whether weights are stored in half precision.
    """

    path: Path
    size: int
    beside: tuple[str, ...]
    sha256: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: dict[str, int]
    untranslated: dict[str, int]
    parameters: int
    rounded: int
    half: bool


@dataclass(frozen=True)
class Inspection:
    """What is known of a file; None for what can't be told because of the problems.

    Attributes:
        graph: what the file says.
        takes: what its input is.
        output: the value that holds the logits.
        read: the classifier, compared with the file in ONNX Runtime.
        dual: the same with its branches.
        problems: a sentence about each thing that stands in the way.
    """

    graph: Graph
    takes: Input | None = None
    output: str | None = None
    read: ReadClassifier | None = None
    dual: DualBranch | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def last(self) -> LastLayer | None:
        """Returns the linear layer that the logits come from; None where there is none."""
        return None if self.dual is None else last_layer(self.dual.softmax_head.classifier.graph)

    @property
    def averages(self) -> bool:
        """Returns whether the head begins with the mean over the grid, by what it computes."""
        layout = None if self.dual is None else self.dual.branch.layout
        if self.dual is None or layout is None:
            return False
        value = torch.randn(2, *layout.value_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pooled = self.dual.softmax_head.neck(value).flatten(1)
        mean = layout.to_grid(value).mean((2, 3))
        return pooled.shape == mean.shape and torch.allclose(pooled, mean, atol=1e-5)

    @property
    def tail(self) -> tuple[str, ...]:
        """Returns the operators after the branch layer, in the order of the graph."""
        if self.dual is None or self.read is None:
            return ()
        model = self.read.model
        assert isinstance(model, OnnxClassifier)  # noqa: S101 (what was read from a file)
        names = [step.module for step in model.steps]
        if self.dual.branch_layer not in names:
            return ()
        after = model.steps[names.index(self.dual.branch_layer) + 1 :]
        return tuple(step.call.operator for step in after)


def inspect_file(
    path: Path,
    output: str | None = None,
    size: tuple[int, int] | None = None,
    channel_order: ChannelOrder | None = None,
) -> Inspection:
    """Looks at an ONNX file, as far as that goes.

    Args:
        path: the file.
        output: the value to take for the logits, as `read_classifier` takes it.
        size: height and width, for a file that takes any.
        channel_order: the order in which the file takes three channels.

    Raises:
        ModelError: it isn't an ONNX file, or lacks the file of its weights.

    Example:
        inspect_file(Path("detector.onnx")).problems  # ("detector.onnx must be a classifier, ...",)
    """
    file = read_onnx(path)
    graph = _graph_of(file)
    found: list[str] = []

    def tried(function: Callable[[], T]) -> T | None:
        try:
            return function()
        except SigcamError as exc:
            if str(exc) not in found:
                found.append(str(exc))
            return None

    plain = tried(lambda: plain_file(file))
    if plain is None:
        return Inspection(graph, problems=tuple(found))
    model = plain.model
    graph = replace(graph, untranslated=_untranslated(model))
    takes = tried(lambda: find_input(model, str(path), channel_order))
    name = tried(lambda: chosen_output(model, output, str(path)))
    nodes = list(model.graph.node) if name is None else needed(model.graph, name)
    found += list(problems(model, nodes, str(path)))
    if takes is None or name is None or found:
        return Inspection(graph, takes, name, problems=tuple(found))
    read = tried(lambda: classifier_of(plain, output, size, channel_order))
    dual = None
    if read is not None:
        model_read, sizes, channels = read.model, read.size, read.takes.channels
        dual = tried(lambda: DualBranch(model_read, input_size=sizes, channels=channels))
    return Inspection(graph, takes, name, read, dual, tuple(found))


def _graph_of(file: OnnxFile) -> Graph:
    model, path = file.model, file.path
    floating = [t for t in model.graph.initializer if t.data_type in FLOATS]
    counts = counted(model.graph.node)
    return Graph(
        path=path,
        size=path.stat().st_size + sum((path.parent / name).stat().st_size for name in file.beside),
        beside=file.beside,
        sha256=file.sha256,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        ir_version=model.ir_version,
        opsets={"ai.onnx": opset_of(model) or 0}
        | {o.domain: o.version for o in model.opset_import if o.domain not in OWN},
        inputs={i.name: described(i) for i in inputs_of(model)},
        outputs={o.name: described(o) for o in model.graph.output},
        operators=counts,
        untranslated=_untranslated(model),
        parameters=sum(math.prod(t.dims) for t in floating),
        rounded=counts.get("QuantizeLinear", 0) + counts.get("DequantizeLinear", 0),
        half=any(t.data_type in HALVES for t in floating),
    )


def _untranslated(model: onnx.ModelProto) -> dict[str, int]:
    nodes = list(model.graph.node)
    others = [node for node in nodes if node.domain not in OWN]
    return counted(untranslated(nodes)) | counted(others)
