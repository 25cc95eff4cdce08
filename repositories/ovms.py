"""A repository for OpenVINO Model Server: config.json, and a folder for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sigcam.core.errors import UsageError
from sigcam.core.scratch import scratch_folder
from sigcam.repositories.folder import write_json
from sigcam.repositories.models import copy_model, link_graph
from sigcam.repositories.options import NamedModel, RepositoryOptions
from sigcam.repositories.weights import separate_initializers

__all__ = ["write_ovms"]

MOUNT = "/models"
"""Where the server's container has the repository; its own examples mount it there."""

_PLUGIN = {
    "PERFORMANCE_HINT": "THROUGHPUT",
    # OpenVINO takes bf16 where the processor has it, and 8 bits for the inputs of layers with
    # 8-bit weights, both of which leave the parity report's tolerance.
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def write_ovms(models: list[NamedModel], folder: Path, options: RepositoryOptions) -> None:
    """Writes config.json, and NAME/1/model.onnx for each model.

    The server takes tensors: images prepared by the client as `Spec.preprocessing` says. It makes
    no batches of requests; clients send batches of any size.

    Args:
        models: artifacts as ONNX files, whose weights are separated where OpenVINO needs it.
        folder: of the repository; it exists.
        options: `instances` counts, as requests that are run at once.

    Raises:
        UsageError: an engine of TensorRT.

    Example:
        write_ovms([NamedModel("net", Path("net.onnx"))], Path("repository"), RepositoryOptions())
    """
    entries: list[dict[str, Any]] = []
    for one in models:
        if one.path.suffix == ".engine":
            raise UsageError(f"OpenVINO runs no engines of TensorRT; give the .onnx of {one.path}")
        # Without the head graph: the server takes the one ONNX file there for the model.
        with scratch_folder("repository") as scratch:
            graph = link_graph(copy_model(one, scratch), folder / one.name / "1")
        separate_initializers(graph)
        config = {
            "name": one.name,
            "base_path": f"{MOUNT}/{one.name}",
            "target_device": "CPU",
            "nireq": options.instances,
            "plugin_config": _PLUGIN,
        }
        entries.append({"config": config})
    write_json(folder / "config.json", {"model_config_list": entries})
