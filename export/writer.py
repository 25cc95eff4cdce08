"""From a module to checked ONNX bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from sigcam.runtime.errors import ExportError, UsageError
from sigcam.runtime.spec import METADATA_KEY, Spec

OPSETS = (18, 19, 20)
_LIMIT = 2**31 - 2**20
"""A protobuf message must stay under 2 GiB; a megabyte is left for all but the weights."""


def check_opset(opset: int) -> None:
    """Refuses an opset that isn't in `OPSETS`.

    Raises:
        UsageError: it isn't.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset}")


def to_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, dict[int, str]],
    outputs: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    """Exports `module` with standard operators only.

    Args:
        module: its forward takes `inputs` by name.
        inputs: examples, with batch 2 or more.
        dynamic: per input, axis to the name of its dynamic size.
        outputs: names of the outputs, in order.
        opset: of the default domain.

    Raises:
        ExportError: the exporter failed, or the model is over 2 GiB.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size > _LIMIT:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB; one ONNX file holds less than 2 GiB, "
            f"so choose a smaller network"
        )
    dims = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = {n: {a: dims[d] for a, d in dynamic.get(n, {}).items()} for n in inputs}
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(
                module.eval(), (), kwargs=inputs, dynamic_shapes=shapes, strict=False
            )
            program: Any = torch.onnx.export(
                exported,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        model: onnx.ModelProto = program.model_proto
        _strip(model)
        _name_sizes(model, dynamic)
        with quiet():
            onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # the exporter lets through errors of many kinds
        reason = str(exc).strip().split("\n")[0]
        raise ExportError(
            f"the graph can't be exported to ONNX: {type(exc).__name__}: {reason}"
        ) from exc
    return model


def with_spec(model: onnx.ModelProto, spec: Spec) -> bytes:
    """The model's bytes with `spec` in its metadata."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress and notes off a user's terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            for name in ("torch", "onnxscript", "copyreg", "onnx_ir"):
                warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes: they name source files of the machine that exported."""
    model.producer_name, model.producer_version, model.doc_string = "sigcam", "", ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    # Shapes of the values inside follow from the operators; every engine infers them.
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_sizes(model: onnx.ModelProto, dynamic: dict[str, dict[int, str]]) -> None:
    """Gives the dynamic sizes their names; the exporter made up its own."""
    names = {}
    for value in model.graph.input:
        for axis, name in dynamic.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]
