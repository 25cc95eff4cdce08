"""Turns a module into a checked ONNX model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from sigcam.classifier.onnx.kept import KeptFront
from sigcam.core.errors import ExportError, StorageError
from sigcam.export.attention import scaled_dot_product_attention
from sigcam.export.kept_front import put_in_place

OPSETS = (18, 19, 20)
"""Versions of the ONNX standard that are written."""

DEFAULT_OPSET = 18

_TRANSLATIONS: Any = {
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention
}

MAX_MESSAGE_BYTES = 2**31 - 2**20
"""A protobuf message must stay under 2 GiB; a megabyte is left for all but the weights."""

MAX_TENSOR_BYTES = 2**31
"""ONNX Runtime takes no larger tensor from memory, which the runtime reads artifacts into."""


@dataclass(frozen=True)
class GraphSignature:
    """The inputs and outputs of a graph that is exported.

    Attributes:
        inputs: name of each input to an example of it, in the order of the arguments of the
            module's `forward`. A size that varies must be 2 or more in the example, and no
            two of them equal to each other or to a fixed size: the exporter would take them
            for the same.
        outputs: names of the outputs, in the order in which `forward` returns them.
        dynamic: name of an input to its axes that vary, each with the name of its size.
        kept: the part of an ONNX file that stands in the graph as it is, in the place of
            `KeptModule`; its operators are those of the opset that is written. None for none.
    """

    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    kept: KeptFront | None = None


def needs_external_data(module: nn.Module, kept: KeptFront | None = None) -> bool:
    """Returns whether the weights of a module are too large for one file.

    Args:
        module: what is exported.
        kept: the part of an ONNX file that stands in its graph.

    Example:
        >>> needs_external_data(nn.Linear(100, 10))
        False
        >>> needs_external_data(nn.Linear(30_000, 20_000, device="meta"))  # 2.4 GB in float32
        True
    """
    return sum(size for _, size in _sizes(module, kept)) > MAX_MESSAGE_BYTES


def _sizes(module: nn.Module, kept: KeptFront | None) -> list[tuple[str, int]]:
    """Returns the name and the bytes of each weight, of the module and of the kept part."""
    own = [(name, p.numel() * p.element_size()) for name, p in module.named_parameters()]
    return own if kept is None else own + kept.sizes


def to_onnx(
    module: nn.Module,
    signature: GraphSignature,
    opset: int = DEFAULT_OPSET,
    data_file: Path | None = None,
) -> onnx.ModelProto:
    """Exports a module with standard operators only.

    Args:
        module: what is exported. It is put into inference mode.
        signature: the module's inputs and outputs.
        opset: the version of the default domain.
        data_file: where the weights go, if not into the model itself. It must be in the
            folder that the model will be written to.

    Returns:
        The checked model; with `data_file`, one that refers to the weights by that name.

    Raises:
        ExportError: the exporter failed, a single weight is over 2 GiB, or the model is and has
            no data file.
        StorageError: the data file can't be written.

    Example:
        >>> signature = GraphSignature({"x": torch.zeros(2, 3)}, ["y"], {"x": {0: "batch"}})
        >>> model = to_onnx(nn.Linear(3, 1), signature)
        >>> [node.op_type for node in model.graph.node]
        ['Gemm']
    """
    _refuse_large_tensors(module, signature.kept)
    if data_file is None and needs_external_data(module, signature.kept):
        raise ExportError("the weights are over 2 GiB; they need a file of their own")
    dynamic = signature.dynamic
    sizes = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = tuple(
        {axis: sizes[size] for axis, size in dynamic.get(name, {}).items()}
        for name in signature.inputs
    )
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(
                module.eval(), tuple(signature.inputs.values()), dynamic_shapes=shapes, strict=False
            )
            program: Any = torch.onnx.export(
                exported,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
                custom_translation_table=_TRANSLATIONS,
            )
        model = _serialised(program.model, data_file, signature.kept)
        _strip(model)
        _name_sizes(model, dynamic)
        _check(model, data_file)
    except OSError as exc:
        raise StorageError(
            f"cannot write the model's intermediate files: {exc.strerror or exc}; choose a folder "
            "that is writable and has room"
        ) from exc
    except Exception as exc:  # the exporter lets through errors of many kinds
        raise ExportError(f"the graph can't be exported to ONNX: {_reason(exc)}") from exc
    return model


def _refuse_large_tensors(module: nn.Module, kept: KeptFront | None) -> None:
    for name, size in _sizes(module, kept):
        if size > MAX_TENSOR_BYTES:
            raise ExportError(
                f"each weight must have at most 2 GiB, as ONNX Runtime takes them, {name} has "
                f"{size / 2**30:.1f} GiB; split its layer in two, and join what they give"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress and notes off a user's terminal; errors still raise.

    Example:
        >>> with quiet():
        ...     print("a note of the exporter")
    """
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


def _reason(exc: BaseException) -> str:
    """Returns the first error's first line: the last one names the step, not the operator."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(exc)).strip()
    return f"{type(exc).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _serialised(
    program: onnx_ir.Model, data_file: Path | None, kept: KeptFront | None
) -> onnx.ModelProto:
    """Drops constants and computations that are there twice, as both heads share a neck."""
    _merge_equal(program.graph)
    passes = onnx_ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()
    )
    program = passes(program).model
    if kept is not None:  # after the passes, which would change it
        put_in_place(program, kept)
    if data_file is None:
        onnx_ir.external_data.load_to_model(program)  # what the kept part has in files of its own
    else:
        program = onnx_ir.external_data.unload_from_model(
            program, data_file.parent, data_file.name, size_threshold_bytes=1024
        )
    model: onnx.ModelProto = onnx_ir.to_proto(program)
    return model


def _merge_equal(graph: onnx_ir.Graph) -> None:
    """Merges initializers that are equal; onnx_ir's own pass refuses strided arrays."""
    kept: dict[tuple[str, tuple[object, ...], bytes], onnx_ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output():
            continue
        array = np.ascontiguousarray(tensor.numpy())
        digest = hashlib.sha256(array.data).digest()
        first = kept.setdefault((str(tensor.dtype), tuple(tensor.shape), digest), value)
        if first is not value:
            onnx_ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def _check(model: onnx.ModelProto, data_file: Path | None) -> None:
    with quiet():
        if data_file is None:
            onnx.checker.check_model(model, full_check=True)
            return
        model_file = data_file.with_name("checked.onnx")
        model_file.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(model_file), full_check=True)
        model_file.unlink()


def _strip(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes: they name source files of the machine that exported."""
    model.producer_name, model.producer_version, model.doc_string = "sigcam", "", ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    # Shapes of the values inside follow from the operators; every backend infers them.
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_sizes(model: onnx.ModelProto, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Gives the dynamic sizes their names; the exporter made up its own."""
    names = {}
    for value in model.graph.input:
        for axis, name in dynamic.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]
