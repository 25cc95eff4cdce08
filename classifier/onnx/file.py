"""Opens an ONNX file: what isn't one is refused by what its first bytes tell."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.core.errors import ModelError
from sigcam.core.inputs import keep

if TYPE_CHECKING:
    import onnx

_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive, as PyTorch's checkpoints, TorchScript and .keras files are"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "a model in ONNX Runtime's own format (.ort)"),
    (0, b"\x80\x02", "a Python pickle, as PyTorch's old checkpoints are"),
    (0, b"\x80\x04", "a Python pickle, as scikit-learn's models are"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"<?xml", "an XML file, as OpenVINO's .xml is"),
    (0, b"<net", "an XML file, as OpenVINO's .xml is"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (run git lfs pull)"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"{", "a text in JSON"),
    (8, b'{"', "a file of tensors (.safetensors)"),
    (0, b"\x1f\x8b", "a gzip archive (unpack it)"),
)
"""Where bytes stand, the bytes, and what a file with them is."""


def read_onnx(path: Path) -> onnx.ModelProto:
    r"""Reads an ONNX file with its weights, which may lie beside it.

    Args:
        path: the file.

    Raises:
        ModelError: the package onnx is missing, the file isn't there, isn't ONNX, or lacks the
            file of its weights.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "net.onnx")
        ...     _ = file.write_bytes(b"PK\x03\x04")
        ...     read_onnx(file)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ModelError: ...net.onnx must be an ONNX model, it is a zip archive, ...
    """
    _require_onnx()
    import onnx

    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    keep([path])
    try:
        model: onnx.ModelProto = onnx.load(str(path), load_external_data=False)
        whole = bool(model.graph.node) and bool(model.opset_import)
    except Exception as exc:  # protobuf's errors differ by its version
        raise _not_onnx(path) from exc
    if not whole:
        raise _not_onnx(path)
    _load_external(model, path)
    return model


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise ModelError(
            "reading a model.onnx needs the package onnx; pip install 'sigcam[export]'"
        )


def _not_onnx(path: Path) -> ModelError:
    with path.open("rb") as stream:
        head = stream.read(64)
    kind = next((k for at, magic, k in _KINDS if head[at:].startswith(magic)), None)
    came = f"it is {kind}" if kind else f"its {path.stat().st_size} bytes are no such graph"
    if not head:
        came = "it is empty"
    return ModelError(
        f"{path} must be an ONNX model, {came}; export the classifier to ONNX, or give the "
        "original model by its own --arch and --weights"
    )


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Reads the weights that lie in files beside the graph."""
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    names = set()
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    missing = sorted(n for n in names if not (path.parent / n).is_file())
    if missing:
        raise ModelError(
            f"{path} keeps its weights in {', '.join(missing)} beside it, which isn't there; copy "
            "that file into the same folder"
        )
    keep([path.parent / name for name in names])
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as exc:  # damaged or too short, or outside the folder
        raise ModelError(
            f"the weights of {path} beside it can't be read: {exc}; copy the files anew"
        ) from exc
