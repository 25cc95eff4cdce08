"""A repository for Triton: each model by its own backend, and one that takes encoded images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.repositories.models import CopiedModel, copy_model, link_graph
from sigcam.repositories.options import NamedModel, RepositoryOptions
from sigcam.repositories.pbtxt import Enum, to_pbtxt
from sigcam.runtime.backends.base import TensorInfo
from sigcam.serve.inputs import CLASS_IDS, ENCODED
from sigcam.serve.outputs import Size, available

__all__ = ["write_triton"]

_TYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.uint8): "TYPE_UINT8",
    np.dtype(np.float16): "TYPE_FP16",
    np.dtype(np.float32): "TYPE_FP32",
    np.dtype(np.int32): "TYPE_INT32",
    np.dtype(np.int64): "TYPE_INT64",
}

_LABELS = "labels.txt"

_MODEL = '''"""Encoded images in, prediction and maps out; see config.pbtxt."""

from sigcam.repositories.triton_model import TritonPythonModel  # Triton looks for the name here
'''


def write_triton(models: list[NamedModel], folder: Path, options: RepositoryOptions) -> None:
    """Writes two models for each one: NAME takes its tensors, NAME-explain takes encoded images.

    NAME is run by Triton's own backend, onnxruntime or tensorrt. NAME-explain is run by our
    runtime in Triton's Python backend, which needs sigcam installed there; either folder can be
    removed.

    Args:
        models: artifacts, or engines of the package tensorrt.
        folder: of the repository; it exists.
        options: batches, delay, queue and instances.

    Raises:
        UsageError: an engine that Triton can't run.

    Example:
        write_triton([NamedModel("net", Path("net.onnx"))], Path("repository"), RepositoryOptions())
    """
    for one in models:
        model = copy_model(one, folder / f"{one.name}-explain" / "1")
        graph = link_graph(model, folder / one.name / "1")
        if model.is_engine:
            graph.rename(graph.with_name("model.plan"))  # the backend's name for it
        _write(folder / one.name, _tensors_config(model, options))
        _write(folder / f"{one.name}-explain", _images_config(model, options))
        model.path.with_name("model.py").write_text(_MODEL, encoding="utf-8")
        if model.spec.class_names:
            lines = "".join(f"{' '.join(name.split())}\n" for name in model.spec.class_names)
            (folder / one.name / _LABELS).write_text(lines, encoding="utf-8")


def _tensors_config(model: CopiedModel, options: RepositoryOptions) -> dict[str, Any]:
    """Returns the configuration of the model that takes its graph's tensors."""
    most = _batch_size(model, options.batch_size)
    return {
        "name": model.name,
        "backend": "tensorrt" if model.is_engine else "onnxruntime",
        "max_batch_size": most,
        "input": [_tensor(info) for info in model.inputs],
        "output": [_output(info, model) for info in model.outputs],
        **_batching(options),
        "instance_group": [
            {"count": options.instances, **({"kind": Enum("KIND_GPU")} if model.is_engine else {})}
        ],
        # A backend plans its memory, and looks for algorithms, when a size first comes.
        "model_warmup": [_warmup(model, size) for size in sorted({1, most})],
    }


def _images_config(model: CopiedModel, options: RepositoryOptions) -> dict[str, Any]:
    """Returns the configuration of the model that takes encoded images."""
    encoded = {"name": ENCODED, "data_type": Enum("TYPE_STRING"), "dims": [1]}
    inputs: list[dict[str, Any]] = [encoded]
    if model.spec.classes.mode == "input":
        ids = {"name": CLASS_IDS, "data_type": Enum("TYPE_INT64"), "dims": [-1]}
        inputs.append({**ids, "optional": True})
    height, width = model.spec.cam_shape
    sizes: dict[Size, int] = {"C": model.spec.num_classes, "h": height, "w": width}
    outputs = []
    for name, one in available(model).items():
        kind = "TYPE_STRING" if one.datatype == "BYTES" else f"TYPE_{one.datatype}"
        dims = [size if isinstance(size, int) else sizes[size] for size in one.shape]
        outputs.append({"name": name, "data_type": Enum(kind), "dims": dims})
    backend = "tensorrt" if model.is_engine else "auto"
    return {
        "name": f"{model.name}-explain",
        "backend": "python",
        "max_batch_size": _batch_size(model, options.batch_size),
        "input": inputs,
        "output": outputs,
        **_batching(options),
        "instance_group": [{"count": options.instances}],
        "parameters": [{"key": "backend", "value": {"string_value": backend}}],
    }


def _batch_size(model: CopiedModel, wanted: int) -> int:
    sidecar = model.sidecar
    if sidecar is None:
        return wanted
    if sidecar.package != "tensorrt":
        raise UsageError(
            f"Triton's backend runs engines of the package tensorrt, and {model.name} is one of "
            f"{sidecar.package}; build it with `sigcam build-engine --package tensorrt`"
        )
    least, _, most = (shape[0] for shape in sidecar.shapes["image"])
    if least > 1:
        raise UsageError(
            f"the engine {model.name} takes at least {least} images at once, but a request may "
            "hold a single one; build it with --min-batch 1"
        )
    return min(wanted, most)


def _tensor(info: TensorInfo) -> dict[str, Any]:
    dims = [-1 if size is None else size for size in info.shape[1:]]
    return {"name": info.name, "data_type": Enum(_TYPES[info.dtype]), "dims": dims}


def _output(info: TensorInfo, model: CopiedModel) -> dict[str, Any]:
    """Returns an output; of the logits, Triton's classification extension wants the names."""
    named = info.name == "logits" and model.spec.class_names
    return {**_tensor(info), **({"label_filename": _LABELS} if named else {})}


def _batching(options: RepositoryOptions) -> dict[str, Any]:
    """Returns how requests are put together. Triton does so with those of one shape only."""
    policy = {
        "timeout_action": Enum("REJECT"),
        "allow_timeout_override": True,
        "max_queue_size": options.queue_requests,
    }
    return {
        "dynamic_batching": {
            "max_queue_delay_microseconds": options.batch_delay,
            "default_queue_policy": policy,
        }
    }


def _warmup(model: CopiedModel, batch: int) -> dict[str, Any]:
    entries = []
    for info in model.inputs:
        dims = [1 if size is None else size for size in info.shape[1:]]
        value = {"data_type": Enum(_TYPES[info.dtype]), "dims": dims, "zero_data": True}
        entries.append({"key": info.name, "value": value})
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": entries}


def _write(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
