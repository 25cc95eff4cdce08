"""Kinds of model files: artifacts, head graphs and engines, told apart and read.

An artifact and its head graph are ONNX files, which carry a spec; an engine has its spec in a
sidecar. Specs are read without the onnx package: an ONNX file is one protobuf message,
ModelProto, whose fields are walked one by one. All but the metadata are skipped by seeking, so
that the weights are never read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from sigcam.core.annotations import checked
from sigcam.core.digest import ZEROS, find_digest, seal
from sigcam.core.errors import ArtifactError, SchemaError
from sigcam.core.sidecar import read_sidecar
from sigcam.core.spec import METADATA_KEY, Spec

HOW_TO_EXPORT = "export the artifact and its head graph with `sigcam export --head-graph`"
"""What messages advise where a head graph is missing or doesn't belong."""

_SHARED = (
    "method", "method_options", "branch", "nwc", "target_layers", "feature_shapes",
    "num_classes", "head_input",
)  # fmt: skip
"""Fields in which the specs of an artifact and of its head graph agree, beside the weights."""

# Field numbers of ModelProto, GraphProto, TensorProto and StringStringEntryProto (onnx.proto).
_IR_VERSION, _GRAPH, _METADATA = 1, 7, 14
_INITIALIZER = 5
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2
# Protobuf wire types.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_MAX_FIELDS = 100_000
"""No model has so many fields at its top; a file of other bytes may seem to."""


def is_engine(path: Path) -> bool:
    """Returns whether a model file is an engine of TensorRT, by its suffix; else it is ONNX.

    Example:
        >>> is_engine(Path("model.rtx.engine")), is_engine(Path("model.onnx"))
        (True, False)
    """
    return path.suffix == ".engine"


def head_path(path: Path) -> Path:
    """Returns where the head graph of an artifact lies: model.head.onnx beside model.onnx.

    It lies there beside model.engine and model.rtx.engine, too: head graphs stay ONNX files.

    Example:
        >>> head_path(Path("model.rtx.engine")).name
        'model.head.onnx'
    """
    if is_engine(path):
        return path.with_name(f"{path.stem.removesuffix('.rtx')}.head.onnx")
    return path.with_name(f"{path.stem}.head{path.suffix}")


@checked
def read_spec(path: str | Path) -> Spec:
    """Reads the spec of an exported model, or of an engine from its sidecar.

    Raises:
        ArtifactError: the file is missing, a folder, empty, truncated, not ONNX, or an
            ONNX model that sigcam didn't export.
        SchemaError: the spec is malformed, or from a newer sigcam.

    Example:
        spec = read_spec("model.onnx")
        spec.method, spec.cam_shape, spec.class_names[0]
    """
    path = Path(path)
    if is_engine(path):
        return read_sidecar(path).spec
    check_is_file(path, str(path))
    try:
        with path.open("rb") as stream:
            return spec_of(stream, str(path))[0]
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc


def check_is_file(path: Path, name: str) -> None:
    """Refuses a path without a model file, and says what is there.

    Args:
        path: where the file should be.
        name: what messages call it.

    Raises:
        ArtifactError: a folder, nothing, or what can't be looked at.

    Example:
        >>> check_is_file(Path("/none.onnx"), "none.onnx")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ArtifactError: there is no model file none.onnx; make one with ...
    """
    try:
        if path.is_dir():
            raise ArtifactError(f"{name} is a folder; pass the exported .onnx file in it")
        if not path.is_file():
            raise ArtifactError(f"there is no model file {name}; make one with `sigcam export`")
    except OSError as exc:
        raise ArtifactError(f"cannot read {name}: {exc.strerror or exc}") from exc


def spec_of(stream: BinaryIO, name: str) -> tuple[Spec, int | None]:
    """Reads the spec of an ONNX file that is open, or in memory.

    Args:
        stream: the file, open for reading bytes.
        name: what messages call it.

    Returns:
        The spec; and where the 64 digits of its digest begin in the file, None where it has none.

    Raises:
        ArtifactError, SchemaError: as `read_spec`.

    Example:
        with open("model.onnx", "rb") as stream:
            spec, at = spec_of(stream, "model.onnx")
    """
    entry = _find_spec(stream, name)
    if entry is None:
        raise ArtifactError(
            f"{name} is an ONNX model without a sigcam spec, so something else exported it; "
            "export the PyTorch model with `sigcam export`"
        )
    begin, text = entry
    try:
        spec = Spec.from_json(text.decode("utf-8"))
    except SchemaError as exc:
        raise SchemaError(f"{name}: {exc}") from exc
    except (UnicodeDecodeError, RecursionError) as exc:
        raise SchemaError(f"{name}: the spec is not JSON; export the model again") from exc
    at = find_digest(text)
    return spec, None if at is None else begin + at


def external_files(stream: BinaryIO, name: str) -> list[str]:
    """Lists the files beside an ONNX file that its graph takes weights from, each once.

    Args:
        stream: the file, open for reading bytes.
        name: what messages call it.

    Raises:
        ArtifactError: the file isn't ONNX, or it names a file elsewhere than beside or below it.

    Example:
        with open("model.onnx", "rb") as stream:
            external_files(stream, "model.onnx")  # ["model.onnx.data"], or []
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    found: dict[str, None] = {}
    try:
        for end in _fields(stream, size, _GRAPH):
            for inner in _fields(stream, end, _INITIALIZER):
                for last in _fields(stream, inner, _EXTERNAL_DATA):
                    key, _, value = _read_entry(stream, last)
                    if key == b"location":
                        found[value.decode("utf-8", "surrogateescape")] = None
    except (_NotProtobufError, _TruncatedError) as exc:
        raise ArtifactError(f"{name} is not a whole ONNX file; copy or export it again") from exc
    for one in found:
        path = PurePath(one)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ArtifactError(f"{name} takes weights from {one}, which isn't beside it")
    return list(found)


def with_spec(model: Any, spec: Spec) -> bytes:
    """Serialises an ONNX model with a spec in its metadata, sealed by its digest.

    Args:
        model: an `onnx.ModelProto`, which gets the spec as its only metadata.
        spec: what the file will say about itself, but for the digest.

    Example:
        Path("model.onnx").write_bytes(with_spec(to_onnx(module, signature), spec))
    """
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=replace(spec, digest=ZEROS).to_json())
    data: bytes = model.SerializeToString()
    place = spec_of(io.BytesIO(data), "the model")[1]
    return data if place is None else seal(data, place)


def check_belongs(head: Spec, artifact: Spec, file: str | Path) -> None:
    """Refuses a head graph that isn't the one that was exported with an artifact.

    Args:
        head: the spec of the file that is taken for the head graph.
        artifact: the artifact's spec.
        file: what messages call the file.

    Raises:
        ArtifactError: the file is no head graph, or that of another artifact.

    Example:
        check_belongs(read_spec("model.head.onnx"), read_spec("model.onnx"), "model.head.onnx")
    """
    if head.kind != "head":
        raise ArtifactError(f"{file} is not a head graph; {HOW_TO_EXPORT}, or move it away")
    pairs = {name: (getattr(head, name), getattr(artifact, name)) for name in _SHARED}
    pairs["weights"] = (head.source.weights_sha256, artifact.source.weights_sha256)
    pairs["sigmoid branch"] = (head.source.branch_sha256, artifact.source.branch_sha256)
    differing = [f"{name} {a!r}, not {b!r}" for name, (a, b) in pairs.items() if a != b]
    if not differing and head.digest != artifact.head_digest:
        differing = [f"the digest {_short(head.digest)}, not {_short(artifact.head_digest)}"]
    if differing:
        raise ArtifactError(
            f"{file} is the head graph of another artifact: it has {'; '.join(differing)}; "
            f"{HOW_TO_EXPORT}, or move it away"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."


class _NotProtobufError(Exception):
    """The bytes are not a protobuf message."""


class _TruncatedError(Exception):
    """The message goes on after the end of the file."""


def _find_spec(stream: BinaryIO, path: str) -> tuple[int, bytes] | None:
    """Returns where the spec begins in an ONNX file, and its text; None where there is none."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise ArtifactError(f"{path} is empty; make a model with `sigcam export`")
    # Writers put the version first. It tells a truncated model from other bytes.
    looks_right = stream.read(1) == bytes([_IR_VERSION << 3 | _VARINT])
    stream.seek(0)
    try:
        return _walk_model(stream, size)
    except _NotProtobufError as exc:
        raise ArtifactError(f"{path} is not an ONNX file; pass what `sigcam export` wrote") from exc
    except _TruncatedError as exc:
        if not looks_right:
            raise ArtifactError(
                f"{path} is not an ONNX file; pass what `sigcam export` wrote"
            ) from exc
        raise ArtifactError(f"{path} is truncated; copy or export it again") from exc


def _walk_model(stream: BinaryIO, size: int) -> tuple[int, bytes] | None:
    """Finds the value of our metadata entry; checks that the message is whole and a model."""
    seen = set()
    spec = None
    for _ in range(_MAX_FIELDS):
        if stream.tell() == size:
            break
        field, wire, length = _next_field(stream, size)
        seen.add(field)
        if field == _METADATA and wire == _LENGTH:
            key, begin, value = _read_entry(stream, stream.tell() + length)
            spec = (begin, value) if key == METADATA_KEY.encode() else spec
        elif wire == _LENGTH:
            stream.seek(length, os.SEEK_CUR)
    else:
        raise _NotProtobufError
    if not {_IR_VERSION, _GRAPH} <= seen:
        raise _NotProtobufError
    return spec


def _fields(stream: BinaryIO, end: int, wanted: int) -> Iterator[int]:
    """Stops at each field of a number in a message; yields where the field ends."""
    while stream.tell() < end:
        field, wire, length = _next_field(stream, end)
        if wire == _LENGTH:
            after = stream.tell() + length
            if field == wanted:
                yield after
            stream.seek(after)


def _read_entry(stream: BinaryIO, end: int) -> tuple[bytes, int, bytes]:
    """Reads a metadata entry that ends at `end`: its key, where its value begins, its value."""
    key = value = b""
    begin = 0
    while stream.tell() < end:
        field, wire, length = _next_field(stream, end)
        if wire != _LENGTH:
            raise _NotProtobufError
        place, content = stream.tell(), stream.read(length)
        if field == _KEY:
            key = content
        elif field == _VALUE:
            begin, value = place, content
    return key, begin, value


def _next_field(stream: BinaryIO, end: int) -> tuple[int, int, int]:
    """Reads a field's number, its wire type and, if it is length-delimited, its length.

    The stream then stands at the content of a length-delimited field and after the
    content of every other.
    """
    tag = _read_varint(stream)
    field, wire = tag >> 3, tag & 7
    length = 0
    if wire == _VARINT:
        _read_varint(stream)
    elif wire == _LENGTH:
        length = _read_varint(stream)
    elif wire in (_FIXED32, _FIXED64):
        stream.seek(4 if wire == _FIXED32 else 8, os.SEEK_CUR)
    if field == 0 or wire not in (_VARINT, _LENGTH, _FIXED32, _FIXED64):
        raise _NotProtobufError
    if stream.tell() + length > end:
        raise _TruncatedError
    return field, wire, length


def _read_varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise _TruncatedError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _NotProtobufError
