"""What the protocol's metadata say of the server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sigcam.core.versions import __version__

__all__ = ["EXTENSIONS", "model_metadata", "server_metadata", "tensor_metadata"]

EXTENSIONS = ("model_repository", "binary_tensor_data", "parameters", "statistics")
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
