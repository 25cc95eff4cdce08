"""Reads the float32 artifact that is converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from sigcam.convert.onnx_graph import name_nodes
from sigcam.core.artifact import is_engine, read_spec
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.core.spec import Spec

LIMIT = 2**31 - 2**20
"""A protobuf message must stay under 2 GiB; a megabyte is left for all but the weights."""

_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True, eq=False)
class Source:
    """A float32 artifact that was read.

    Attributes:
        path: the artifact's file.
        spec: the artifact's spec.
        model: the graph, with all weights in it, every node with a name of its own. Not to be
            changed.
    """

    path: Path
    spec: Spec
    model: onnx.ModelProto


def read_source(path: Path) -> Source:
    """Reads an artifact that can be converted.

    Args:
        path: the .onnx file; weights in a file beside it are read too.

    Raises:
        UsageError: a TensorRT engine, a head graph, an artifact that was converted before,
            or one over 2 GiB.
        ArtifactError: the file isn't a usable artifact, or not what was written.

    Example:
        source = read_source(Path("model.onnx"))
        source.spec.method, len(source.model.graph.node)
    """
    if is_engine(path):
        raise UsageError(
            f"{path} is a TensorRT engine, whose precision is fixed; quantise the .onnx file that "
            "it was built from, then run `sigcam build-engine --int8`"
        )
    spec = read_spec(path)
    if spec.kind != "artifact":
        raise UsageError(
            f"{path} is a head graph, which stays in float32; quantise the artifact it belongs to"
        )
    file = ModelFile(path)
    file.verify()
    model = _read_model(path)
    file.check_unchanged()
    done = sorted({node.op_type for node in model.graph.node} & _QUANTISED)
    if spec.fidelity is not None or done:
        what = spec.fidelity.precision if spec.fidelity else f"it has {', '.join(done)}"
        raise UsageError(
            f"{path} was converted before ({what}); quantise the float32 artifact that "
            "`sigcam export` wrote"
        )
    name_nodes(model.graph)
    if not any(value.name == "logits" for value in model.graph.output):
        raise ArtifactError(f"{path} has no output `logits`; export the model again")
    # The weights are in the model now.
    return Source(path, replace(spec, external_data={}), model)


def _read_model(path: Path) -> onnx.ModelProto:
    """Reads a graph with all of its weights in it."""
    try:
        model = onnx.load(str(path), load_external_data=False)
        external = sum(
            int(entry.value)
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        )
        if external + path.stat().st_size > LIMIT:
            raise UsageError(
                f"{path} has {external / 2**30:.1f} GiB of weights in a file beside it; only "
                "artifacts under 2 GiB can be quantised"
            )
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except UsageError:
        raise
    except Exception as exc:  # protobuf's and onnx's errors share no narrower base
        raise ArtifactError(f"{path} can't be read: {exc}; copy or export it again") from exc
    for tensor in model.graph.initializer:
        # The weights are in the model now, and no longer beside it.
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model
