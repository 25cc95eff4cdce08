"""What the protocol's metadata say of the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sigcam.core.versions import __version__

__all__ = ["EXTENSIONS", "model_config", "model_metadata", "server_metadata", "tensor_metadata"]

EXTENSIONS = (
    "model_repository", "binary_tensor_data", "parameters", "statistics", "model_configuration",
)  # fmt: skip
"""The extensions of the protocol that are understood, by the names that Triton gave them."""


def server_metadata() -> dict[str, Any]:
    """Returns the metadata of the server.

    Example:
        >>> server_metadata()["name"]
        'sigcam'
    """
    return {"name": "sigcam", "version": __version__, "extensions": list(EXTENSIONS)}


def tensor_metadata(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the metadata of an input or output.

    Example:
        >>> tensor_metadata("logits", "FP32", (-1, 3))
        {'name': 'logits', 'datatype': 'FP32', 'shape': [-1, 3]}
    """
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def model_metadata(
    name: str,
    versions: Iterable[str],
    platform: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the metadata of a model.

    Args:
        name: its name.
        versions: those that are served.
        platform: what it is and what runs it.
        inputs: of `tensor_metadata`.
        outputs: likewise.

    Example:
        >>> model_metadata("cats", ["1"], "sigcam_ort", [], [])["versions"]
        ['1']
    """
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": inputs,
        "outputs": outputs,
    }


def model_config(
    metadata: Mapping[str, Any], most_images: int, batch_size: int, delay: int
) -> dict[str, Any]:
    """Returns a model's configuration as Triton words it, which its clients and tools ask for.

    Args:
        metadata: of `model_metadata`; tensors begin with the batch's axis.
        most_images: that a request may bring.
        batch_size: most images in one run.
        delay: microseconds that the first image of a batch waits.

    Example:
        >>> image = tensor_metadata("image", "UINT8", (-1, 8, 8, 3))
        >>> made = model_config(model_metadata("cats", ["1"], "sigcam_ort", [image], []), 16, 8, 0)
        >>> made["max_batch_size"], made["input"]
        (16, [{'name': 'image', 'data_type': 'TYPE_UINT8', 'dims': [8, 8, 3]}])
    """
    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": "sigcam",
        "max_batch_size": most_images,
        "input": [_configured(one) for one in metadata["inputs"]],
        "output": [_configured(one) for one in metadata["outputs"]],
        "dynamic_batching": {
            "preferred_batch_size": [batch_size],
            "max_queue_delay_microseconds": delay,
        },
    }


def _configured(tensor: Mapping[str, Any]) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    dims = tensor["shape"][1:] or [1]
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": dims}
