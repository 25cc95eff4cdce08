"""Checks that a graph can be read: that it is of an opset that is known, and has a translation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sigcam.classifier.onnx.operators.table import TABLE
from sigcam.classifier.onnx.tensors import array_of, constant_of
from sigcam.classifier.onnx.values import OWN, dims_of, needed, opset_of, place_of, placed
from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

OPSETS = range(7, 23)
"""The versions of ONNX's operators that the table is written for."""
_USUAL_OPSET = 18

_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
_DETECTION = {"NonMaxSuppression", "RoiAlign", "MaxRoiPool"}
_STEPS = {"Gradient", "Momentum", "Adam", "Adagrad", "SoftmaxCrossEntropyLoss",
          "NegativeLogLikelihoodLoss"}  # fmt: skip
_OWN_METADATA = "sigcam"


def check_graph(model: onnx.ModelProto, output: str, where: str) -> int:
    """Refuses graphs whose output needs what the reader has no translation for.

    Args:
        model: the graph, without functions of its own.
        output: the value that is wanted; nodes that it doesn't need may be anything.
        where: the file's name, for messages.

    Returns:
        The version of the operators.

    Raises:
        ModelError: an unknown version, domain or operator, control flow, a detector's operators,
            or what only training needs.
    """
    for problem in problems(model, needed(model.graph, output), where):
        raise ModelError(problem)
    return opset_of(model) or 0


def problems(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], where: str) -> Iterator[str]:
    """Yields a sentence about each thing that keeps nodes of a graph from being read.

    Args:
        model: the graph.
        nodes: those of its nodes that are wanted.
        where: the file's name, for messages.
    """
    yield from _damage(model, nodes, where)
    if any(entry.key == _OWN_METADATA for entry in model.metadata_props):
        yield (
            f"{where} must be a plain classifier, it is an exported model of sigcam's; run it as "
            "it is (sigcam explain), and export other maps from what it was made of (sigcam info)"
        )
    yield from _training(model, nodes, where)
    own = [node for node in nodes if node.domain in OWN]
    found = placed(n for n in own if n.op_type in _CONTROL_FLOW)
    if found:
        yield (
            f"{where} must be one fixed computation, it has control flow ({found}); simplify it "
            f"with a fixed input size, which takes constant branches out (onnxsim {where} "
            "simplified.onnx), or export the model without it"
        )
    found = placed(n for n in own if n.op_type in _DETECTION)
    if found:
        yield f"{where} must be a classifier, it is a detector's graph ({found}); give a classifier"
    found = placed(n for n in nodes if n.domain not in OWN and n.op_type not in _STEPS)
    if found:
        yield (
            f"{where} must consist of ONNX's own operators, it has others ({found}); give the file "
            "from before it was optimised, or export it anew without fused operators"
        )
    if opset_of(model) not in OPSETS:
        yield _other_opset(model, where)
    found = placed(n for n in untranslated(nodes) if n.op_type not in _CONTROL_FLOW | _DETECTION)
    if found:
        yield (
            f"{where} has operators that aren't translated ({found}); export the model with "
            "others, or give its PyTorch source as --arch file.py:NAME"
        )


def untranslated(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Returns the nodes of ONNX's own operators that the table has no entry for."""
    known = {*TABLE, "Constant", *_STEPS}
    return [n for n in nodes if n.domain in OWN and n.op_type not in known]


def _damage(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], where: str) -> Iterator[str]:
    """Finds the first value that a node takes and nothing before it makes."""
    again = "; the file is damaged, copy or export it again"
    made = {""} | {v.name for v in (*model.graph.input, *model.graph.initializer)}
    for node in nodes:
        missing = next((name for name in node.input if name not in made), None)
        if missing is not None:
            yield (
                f"{where} must make each value before it is used, the node {place_of(node)} "
                f"({node.op_type}) takes {missing!r}, which nothing before it makes{again}"
            )
            return
        made.update(node.output)


def _other_opset(model: onnx.ModelProto, where: str) -> str:
    version = opset_of(model)
    fixed, first = where, ""
    names = {str(d) for i in model.graph.input for d in dims_of(i) or () if isinstance(d, str)}
    if version is not None and version < OPSETS[0] and names - {"?"}:
        # The converter wants numbers where operators broadcast.
        for name in sorted(names - {"?"}):
            step = "python -m onnxruntime.tools.make_dynamic_shape_fixed"
            first += f"{step} --dim_param {name} --dim_value 1 {fixed} fixed.onnx && "
            fixed = "fixed.onnx"
    return (
        f"{where} must be of the opsets {OPSETS[0]} to {OPSETS[-1]}, it is of "
        f'{version or "none"}; convert it: {first}python -c "import onnx, onnx.version_converter '
        f"as v; onnx.save(v.convert_version(onnx.load('{fixed}'), {_USUAL_OPSET}), "
        "'converted.onnx')\""
    )


def _training(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], where: str) -> Iterator[str]:
    stored = {t.name: t for t in model.graph.initializer}
    made = {n.output[0]: n for n in nodes if n.op_type == "Constant" and n.output}

    def holds(name: str) -> bool:
        if name in stored:
            return bool(array_of(stored[name]).any())
        return name in made and bool(constant_of(made[name]).any())

    def is_training(node: onnx.NodeProto) -> bool:
        if node.op_type == "BatchNormalization":  # before opset 14 further outputs say so
            mode = any(a.name == "training_mode" and a.i == 1 for a in node.attribute)
            return mode or sum(map(bool, node.output)) > 1
        if node.op_type == "Dropout":
            return len(node.input) > 2 and holds(node.input[2])
        return node.op_type in _STEPS

    found = placed(n for n in nodes if is_training(n))
    if found or model.training_info:
        yield (
            f"{where} must be a graph for inference, it has what only training needs "
            f"({found or 'training_info'}); export the model in inference mode (model.eval())"
        )
