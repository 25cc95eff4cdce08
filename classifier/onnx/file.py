"""Opens an ONNX file: what isn't one is refused by what its first bytes tell."""

from __future__ import annotations

import importlib.util
import math
import zipfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.core.digest import digest_of
from sigcam.core.errors import ModelError
from sigcam.core.inputs import keep

if TYPE_CHECKING:
    import onnx

_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "a model in ONNX Runtime's own format (.ort)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"ptrt", "a TensorRT engine"),
    (0, b"\x7fELF", "a program or library"),
    (0, b"7767517", "an ncnn model (.param)"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (run git lfs pull)"),
    (8, b'{"', "a file of tensors (.safetensors)"),
    (0, b"\x1f\x8b", "a gzip archive (unpack it)"),
    (0, b"BZh", "a bzip2 archive (unpack it)"),
    (0, b"\xfd7zXZ", "an xz archive (unpack it)"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it)"),
    (257, b"ustar", "a tar archive (unpack it)"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"RIFF", "a RIFF file, such as a WebP image"),
    (0, b"%PDF", "a PDF"),
)
"""Where bytes stand, the bytes, and what a file with them is."""

_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "a web page (the download needs another address, or a login)"),
    (b"<html", "a web page (the download needs another address, or a login)"),
    (b"<?xml", "an XML file, as OpenVINO's .xml is"),
    (b"<net", "an XML file, as OpenVINO's .xml is"),
    (b"{", "a text in JSON"),
    (b"[", "a text in JSON"),
    (b"name:", "a text, as Caffe's .prototxt is"),
    (b"layer", "a text, as Caffe's .prototxt is"),
)
"""How a text begins, in small letters, and what it is then."""

_MEMBERS: tuple[tuple[str, str], ...] = (
    ("/constants.pkl", "a TorchScript archive"),
    ("/data.pkl", "a PyTorch checkpoint"),
    ("model.weights.h5", "a Keras model (.keras)"),
    ("archive_format", "a program of torch.export's (.pt2)"),
    (".npy", "a NumPy archive (.npz)"),
    ("Manifest.json", "a Core ML package (.mlpackage)"),
)
"""How a name in a zip archive ends, and what the archive is then."""

_PICKLE = b"\x80"
_FIELDS = (b"\x08", b"\x12", b"\x3a")
"""How an ONNX file begins: with its IR version, its producer, or the graph."""
_HEAD = 512

_MOST_LOADED = 2**30
"""Weights of more bytes stay in the files beside the graph: a message holds less than 2 GiB, and
each graph that is cut out of it would have a copy."""
_SMALL = 2**20
"""Tensors of so few elements are loaded nevertheless; what isn't a weight is smaller."""
MOST_BYTES = 2**31 - 1
"""A protobuf message has no more."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read.

    Attributes:
        path: the file.
        model: its graph, with its weights; where these are over 1 GiB in files beside it, large
            ones stay there.
        beside: the names of the files in the same folder that hold its weights.
        sha256: the hash of the file itself.
    """

    path: Path
    model: onnx.ModelProto
    beside: tuple[str, ...]
    sha256: str


def read_onnx(path: Path) -> OnnxFile:
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

    if path.is_dir():
        raise ModelError(
            f"{path} must be an ONNX file, it is a folder{_of_a_folder(path)}; name the file, or "
            "export the classifier to ONNX"
        )
    if not path.is_file():
        raise ModelError(f"there is no file {path}; look at its folder and its name")
    keep([path])
    try:
        model: onnx.ModelProto = onnx.load(str(path), load_external_data=False)
        whole = bool(model.graph.node) and bool(model.opset_import)
    except OSError as exc:
        raise ModelError(
            f"{path} can't be read: {exc.strerror or exc}; look at its permissions"
        ) from exc
    except Exception as exc:  # protobuf's errors differ by its version
        raise _not_onnx(path) from exc
    if not whole or not _is_text(model):
        raise _not_onnx(path)
    beside = _load_external(model, path)
    with path.open("rb") as stream:
        return OnnxFile(path, model, beside, digest_of(stream))


def _is_text(model: onnx.ModelProto) -> bool:
    """Returns whether all names are texts: bytes that aren't UTF-8 come as bytes."""
    graph = model.graph
    names = [v.name for v in (*graph.node, *graph.input, *graph.output, *graph.initializer)]
    for node in graph.node:
        names += [*node.input, *node.output, node.op_type, node.domain]
    return all(isinstance(name, str) for name in names)


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise ModelError(
            "reading a model.onnx needs the package onnx; pip install 'sigcam[export]'"
        )


def _not_onnx(path: Path) -> ModelError:
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    came = _kind(path, head)
    if came is None and head.startswith(_FIELDS) and path.stat().st_size > MOST_BYTES:
        return ModelError(
            f"{path} must have less than 2 GiB, as ONNX's format wants it, it has "
            f"{path.stat().st_size / 2**30:.1f} GiB; export it with its weights in a file beside "
            "it (torch.onnx.export with external_data=True)"
        )
    if came is None and head.startswith(_FIELDS):
        return ModelError(
            f"{path} must be a whole ONNX model, it begins as one and its "
            f"{path.stat().st_size} bytes end early, or are damaged; copy or download it again"
        )
    came = came or f"its {path.stat().st_size} bytes are no such graph"
    return ModelError(
        f"{path} must be an ONNX model, {came}; export the classifier to ONNX, or give the "
        "original model by its own --arch and --weights"
    )


def _kind(path: Path, head: bytes) -> str | None:
    """Says what a file is, as a sentence's end; None where nothing tells."""
    if not head:
        return "it is empty"
    if head.startswith(b"PK"):
        return f"it is {_archive(path)}"
    kind = next((k for at, magic, k in _KINDS if head[at:].startswith(magic)), None)
    if kind is None and head.startswith(_PICKLE) and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        kind = "a Python pickle, as PyTorch's old checkpoints and scikit-learn's models are"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = kind or next((k for begin, k in _TEXTS if text.startswith(begin)), None)
    if kind is None and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        kind = "a text"
    return None if kind is None else f"it is {kind}"


def _archive(path: Path) -> str:
    """Says what a zip archive holds; nothing of it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        names = []
    found = next((k for end, k in _MEMBERS if any(n.endswith(end) for n in names)), None)
    if found is None and any(n.endswith(".onnx") for n in names):
        return "a zip archive with an ONNX file in it (unpack it)"
    return found or "a zip archive, as PyTorch's checkpoints, TorchScript and .keras files are"


def _of_a_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return " with a TensorFlow SavedModel (python -m tf2onnx.convert --saved-model converts it)"
    inside = sorted(file.name for file in path.glob("*.onnx"))
    return f" with {', '.join(inside[:3])}" if inside else ""


def _load_external(model: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Reads the weights that lie in files beside the graph; returns their names."""
    from onnx.external_data_helper import load_external_data_for_tensor

    stored, held = _external_tensors(model)
    entries = [entry for tensor in (*stored, *held) for entry in tensor.external_data]
    names = tuple(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))
    missing = sorted(n for n in names if not (path.parent / n).is_file())
    if missing:
        raise ModelError(
            f"{path} keeps its weights in {', '.join(missing)} beside it, which isn't there; copy "
            "that file into the same folder"
        )
    keep([path.parent / name for name in names])
    if sum((path.parent / name).stat().st_size for name in names) > _MOST_LOADED:
        stored = [tensor for tensor in stored if math.prod(tensor.dims) <= _SMALL]
    try:
        for tensor in (*stored, *held):
            load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as exc:  # damaged or too short, or outside the folder
        raise ModelError(
            f"the weights of {path} beside it can't be read: {exc}; copy the files anew"
        ) from exc
    return names


def _external_tensors(
    model: onnx.ModelProto,
) -> tuple[list[onnx.TensorProto], list[onnx.TensorProto]]:
    """Returns the tensors that lie in files beside the graph: stored ones, and those of nodes."""
    from onnx.external_data_helper import uses_external_data

    nodes = chain(model.graph.node, *(function.node for function in model.functions))
    held = (a.t for node in nodes for a in node.attribute if a.HasField("t"))
    stored = filter(uses_external_data, model.graph.initializer)
    return list(stored), list(filter(uses_external_data, held))
