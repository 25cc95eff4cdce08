"""`sigcam inspect`: what is in an ONNX file, and what would be exported of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sigcam.cli.common import (
    channel_order_option,
    echo,
    echo_json,
    reports_errors,
    size_option,
)
from sigcam.core.cpus import wait_asleep

if TYPE_CHECKING:
    from sigcam.classifier.onnx.inspection import Graph, Inspection
    from sigcam.core.spec import ChannelOrder

_NAME, _WIDTH = 15, 100
_COMMAND = "to export"
_SMALL = 100_000
_LISTED = 4
"""Most layers of one kind that are printed; --json has all."""


@click.command(name="inspect")
@click.argument("model")
@size_option
@channel_order_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@reports_errors
def command(
    model: str, size: tuple[int, int] | None, channel_order: ChannelOrder | None, *, as_json: bool
) -> None:
    """Print what is in MODEL, a classifier's .onnx file, and what can be exported of it.

    MODEL#NAME takes the output NAME, or a value of that name inside, for the logits. Nothing is
    written. A file that can't be exported is described too, with what stands in the way.
    """
    wait_asleep()
    from sigcam.classifier.onnx.inspection import inspect_file
    from sigcam.classifier.zoo.onnx import file_and_output
    from sigcam.export.applicable import applicable_methods

    found = inspect_file(*file_and_output(model), size, channel_order)
    methods = {} if found.dual is None else applicable_methods(found.dual)
    if as_json:
        echo_json(_record(found, methods))
        return
    given = "" if size is None else f" --size {size[0]}x{size[1]}"
    given += "" if channel_order is None else f" --channel-order {channel_order}"
    for name, value in _rows(found, methods, f"{model}{given}"):
        # A command stays in one line, to be copied.
        lines = [f"{name:<{_NAME}}{value}"] if name == _COMMAND else _wrapped(name, value)
        for line in lines:
            echo(line)


def _wrapped(name: str, value: str) -> list[str]:
    begin = f"{name:<{_NAME - 1}} "
    return textwrap.wrap(
        value, _WIDTH, initial_indent=begin, subsequent_indent=" " * _NAME,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


Rows = Iterator[tuple[str, str]]


def _rows(found: Inspection, methods: dict[str, str], arch: str) -> Rows:
    yield from _file_rows(found.graph)
    yield from _input_rows(found)
    yield from _output_rows(found)
    yield from _layer_rows(found)
    yield from _operator_rows(found.graph)
    if found.read is not None:
        error = found.read.difference
        yield "compared", f"logits as ONNX Runtime's, to {error:.1e} of the largest"
    yield from _export_rows(found, methods, arch)


def _file_rows(graph: Graph) -> Rows:
    beside = f" with {', '.join(graph.beside)}" if graph.beside else ""
    yield "file", f"{graph.path}{beside}: {_amount(graph.size)}"
    opsets = ", ".join(
        f"opset {version}" if domain == "ai.onnx" else f"{domain} {version}"
        for domain, version in graph.opsets.items()
    )
    written = graph.producer or "not said"
    yield "written by", f"{written}; {opsets}, IR version {graph.ir_version}"


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size > _SMALL else f"{size:,} bytes"


def _input_rows(found: Inspection) -> Rows:
    inputs = "; ".join(f"{name}: {kind}" for name, kind in found.graph.inputs.items())
    yield "input", inputs or "none"
    takes = found.takes
    if takes is None:
        return
    places = "last (NHWC)" if takes.nhwc else "first (NCHW)"
    yield "layout", f"channels {places}, {takes.channels} of them{_size(found)}"
    if takes.channels in (3, 4):
        yield "channel order", _order(found)
    yield "normalisation", _normalisation(found)
    fixed = "any number of images"
    if takes.batch is not None:
        fixed = f"fixed to {takes.batch} in the file; the exported model takes any number"
        fixed = fixed if found.read is not None else f"fixed to {takes.batch}"
    yield "batch", fixed


def _size(found: Inspection) -> str:
    takes = found.takes
    if takes is None or (takes.height and takes.width):
        return ""
    used = "x".join(map(str, found.read.size)) if found.read is not None else "224x224"
    return f"; any size, looked at with {used} (--size)"


def _order(found: Inspection) -> str:
    takes = found.takes
    assert takes is not None  # noqa: S101 (asked only then)
    turned = "; the graph turns them round itself in front" if takes.front.turned else ""
    if takes.front.order is not None:
        return f"{takes.front.order.upper()}, by {takes.front.reason}{turned}"
    if takes.order == "bgr":
        return f"BGR, as you say{turned}"
    return f"not in the file; RGB is assumed, --channel-order bgr says otherwise{turned}"


def _normalisation(found: Inspection) -> str:
    takes = found.takes
    assert takes is not None  # noqa: S101 (asked only then)
    front = takes.front
    if front.limit is not None:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (front.mean, front.std))
        kind = "bytes" if takes.is_bytes else f"pixels from 0 to {front.limit}"
        nodes = ", ".join(front.nodes)
        return f"in the graph ({nodes}), of {kind}: mean {mean}; deviation {std}"
    if takes.is_bytes:
        return "in the graph: it takes bytes"
    if front.values is not None:
        low, high = front.values
        return f"pixels from {low:g} to {high:g}, by the file's metadata"
    from sigcam.classifier.build import USUAL

    options, what = next((options, what) for what, options in USUAL.items())
    return (
        f"not in the file: --mean and --std must be given, as the model was trained; such as "
        f"{options} ({what}; the error of sigcam export lists others)"
    )


def _output_rows(found: Inspection) -> Rows:
    outputs = "; ".join(f"{name}: {kind}" for name, kind in found.graph.outputs.items())
    yield "outputs", outputs or "none"
    if found.output is None:
        return
    if found.dual is None:
        yield "logits", f"{found.output}, by its shape"
        return
    dual = found.dual
    through = f"under {dual.squashing} in {found.output}, which is taken off"
    yield "logits", found.output if dual.squashing is None else through
    yield "classes", f"{dual.num_classes}; task {dual.task}"


def _layer_rows(found: Inspection) -> Rows:
    dual = found.dual
    if dual is None:
        return
    yield "branch layer", f"{dual.branch_layer}{_shape(dual.branch.layout)}"
    yield "pooling", "global average" if found.averages else "none, or no plain average"
    if found.tail:
        yield "head", ", ".join(found.tail)
    if found.last is not None:
        C, D = dual.softmax_head.named_tensors()[found.last.weight].flatten(1).shape
        yield "linear layer", f"{found.last.weight}: {D} to {C}"
    else:
        yield "linear layer", "none at the end"
    targets = ", ".join(f"{t.layer}{_shape(t.layout)}" for t in dual.targets)
    yield "target layer", f"{targets}, or --target-layer:"
    listed = _layers(found)
    stages = _stages(found)
    for layer in stages:
        yield "", f"{layer}{_sizes(listed.get(layer))}"
    if len(listed) > len(stages):
        yield "", f"and {len(listed) - len(stages)} more (--json lists them)"


def _stages(found: Inspection) -> list[str]:
    from sigcam.classifier.stages import last_of_stages

    assert found.dual is not None  # noqa: S101 (asked only then)
    stages = last_of_stages(found.dual.features, found.dual.targets[0])[:-1]
    return stages[-_LISTED:]


def _layers(found: Inspection) -> dict[str, tuple[int, int, int]]:
    from sigcam.classifier.stages import layers_with_grid

    if found.dual is None:
        return {}
    listed = layers_with_grid(found.dual.features, found.dual.targets[0])
    return {n: shape for n, shape in listed.items() if n != found.dual.targets[0].layer}


def _shape(layout: Any) -> str:
    return "" if layout is None else _sizes(layout.shape)


def _sizes(shape: tuple[int, int, int] | None) -> str:
    return "" if shape is None else f" ({shape[0]} channels, {shape[1]}x{shape[2]})"


def _operator_rows(graph: Graph) -> Rows:
    rounded = f"{graph.rounded} nodes round or undo it; read without the rounding"
    half = "no; weights in half precision, computed in float32" if graph.half else "no"
    yield "quantised", rounded if graph.rounded else half
    counts = ", ".join(f"{name} {count}" for name, count in graph.operators.items())
    total = sum(graph.operators.values())
    yield "operators", f"{total} nodes, {graph.parameters:,} stored values: {counts}"
    missing = ", ".join(f"{name} {count}" for name, count in graph.untranslated.items())
    yield "untranslated", missing or "none"


def _export_rows(found: Inspection, methods: dict[str, str], arch: str) -> Rows:
    for problem in found.problems:
        yield "in the way", problem
    if not methods:
        return
    from sigcam.classifier.zoo.onnx import known_preprocessing
    from sigcam.export.methods import METHODS

    works = [m for m, reason in methods.items() if not reason]
    graph = ", ".join(m for m in works if m in METHODS)
    later = ", ".join(m for m in works if m not in METHODS)
    yield "methods", f"in the graph: {graph or 'none'}; by the runtime: {later or 'none'}"
    for method, reason in methods.items():
        if reason:
            yield f"not {method}"[: _NAME - 1], reason
    best = next((m for m in ("gradcam", "cam", *works) if m in works), None)
    if best is None or found.read is None:
        return
    known = known_preprocessing(found.read.takes, found.read.size) is not None
    given = "" if known else " --mean ... --std ..."
    command = f"sigcam export --arch {arch} --method {best} --branch softmax{given}"
    yield _COMMAND, f"{command} --out explained.onnx"


def _record(found: Inspection, methods: dict[str, str]) -> dict[str, Any]:
    graph, takes, dual = found.graph, found.takes, found.dual
    record: dict[str, Any] = {
        "file": str(graph.path), "bytes": graph.size, "beside": list(graph.beside),
        "sha256": graph.sha256, "producer": graph.producer, "ir_version": graph.ir_version,
        "opsets": graph.opsets, "inputs": graph.inputs, "outputs": graph.outputs,
        "operators": graph.operators, "untranslated": graph.untranslated,
        "stored_values": graph.parameters, "quantised": graph.rounded > 0,
        "half_precision": graph.half, "output": found.output, "problems": list(found.problems),
    }  # fmt: skip
    if takes is not None:
        front = takes.front
        record["input"] = {
            "name": takes.name, "layout": "nhwc" if takes.nhwc else "nchw",
            "channels": takes.channels, "height": takes.height, "width": takes.width,
            "batch": takes.batch, "channel_order": takes.order,
            "channel_order_known": bool(front.order), "turned_in_front": front.turned,
            "bytes": takes.is_bytes, "normalised_by": list(front.nodes), "mean": list(front.mean),
            "std": list(front.std), "pixels_to": front.limit,
            "metadata_values": None if front.values is None else list(front.values),
        }  # fmt: skip
    if dual is not None:
        record["classifier"] = {
            "classes": dual.num_classes, "task": dual.task, "squashing": dual.squashing,
            "branch_layer": dual.branch_layer, "average_pooling": found.averages,
            "linear_weight": None if found.last is None else found.last.weight,
            "target_layers": {t.layer: list(t.layout.shape) for t in dual.targets},
            "other_layers": {n: list(shape) for n, shape in _layers(found).items()},
        }  # fmt: skip
        record["methods"] = methods
    if found.read is not None:
        record["difference"] = found.read.difference
    return record
