"""A model's file as it is loaded: read while it stays the same, checked against its digest.

A model may come as a path or as bytes. What a path names can change while it is read, and
afterwards: a deployment copies a new model over the old one, a link is turned. So a file is
stamped when it is first looked at and compared when it has been read; weights beside a graph are
read, never mapped; and a file that is read later is held open until then.
"""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO

from sigcam.core.artifact import check_is_file, external_files, is_engine, read_spec, spec_of
from sigcam.core.digest import digest_of
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.sidecar import sidecar_path
from sigcam.core.spec import Spec

__all__ = ["ModelFile", "ModelSource"]

ModelSource = str | Path | bytes | bytearray | memoryview | IO[bytes]
"""What a model is loaded from: a path, its bytes, or a file that is open for reading bytes."""

_BLOCK = 1 << 20

Stamp = tuple[int, ...]


class ModelFile:
    """The file of an artifact, of a head graph or of an engine, or its bytes in memory.

    Attributes:
        path: where the file lies, absolute, so that it stays the same file when the process
            changes its folder; None for bytes.
        name: what messages call it.

    Example:
        file = ModelFile("model.onnx")
        file.verify()
        file.spec.method
    """

    def __init__(self, source: ModelSource, name: str = "the model's bytes") -> None:
        """Takes a path, or reads what is given.

        Args:
            source: a path, bytes, or a file that is open for reading bytes, which is read from
                where it stands to its end and left open.
            name: what messages call bytes.

        Raises:
            UsageError: none of these, or a file that is open for reading text.
            ArtifactError: the open file can't be read.

        Example:
            >>> ModelFile(b"no model").name, ModelFile("model.onnx").path.name
            ("the model's bytes", 'model.onnx')
        """
        self.path: Path | None = None
        self._content: bytes | None = None
        self._held: BinaryIO | None = None
        self._stamps: dict[Path, Stamp] = {}
        if isinstance(source, (str, os.PathLike)):
            self.name = str(source)
            self.path = Path(os.path.expanduser(source)).absolute()  # noqa: PTH111 (names no user: as is)
            self._stamp(self.path)
        else:
            self.name = name
            self._content = _bytes_of(source)

    @property
    def is_engine(self) -> bool:
        """Says whether it is an engine of TensorRT, which a path's suffix tells."""
        return self.path is not None and is_engine(self.path)

    @cached_property
    def spec(self) -> Spec:
        """Returns the spec; an engine's comes from its sidecar.

        Raises:
            ArtifactError, SchemaError: as `sigcam.core.artifact.read_spec`.
        """
        return self._spec_and_place[0]

    @cached_property
    def _spec_and_place(self) -> tuple[Spec, int | None]:
        """Returns the spec, and where the digits of its digest begin."""
        if self.is_engine:
            self._stamp(sidecar_path(self._path()))
            return read_spec(self._path()), None
        if self._content is None and self._held is None:
            check_is_file(self._path(), self.name)
        with self._opened() as stream:
            return spec_of(stream, self.name)

    def verify(self) -> None:
        """Checks that graph, spec and the weights beside them are what was written.

        An engine has no digest of its own: `sigcam.core.verify` compares it with its sidecar.

        Raises:
            ArtifactError: a file has changed since it was written, or carries no digest; says
                what to do.

        Example:
            ModelFile("model.onnx").verify()
        """
        spec, place = self._spec_and_place
        if place is None or spec.digest is None:
            raise ArtifactError(f"{self.name} carries no digest; export the model again")
        with self._opened() as stream:
            found = digest_of(stream, place)
        if found != spec.digest:
            raise ArtifactError(
                f"{self.name} is not what was written: its digest is {spec.digest[:12]}..., its "
                f"bytes give {found[:12]}...; copy it again, or export the model again"
            )
        for name in self._external_names:
            wanted = spec.external_data.get(name, "nothing")
            with self._open_beside(name) as stream:
                found = digest_of(stream)
            if found != wanted:
                raise ArtifactError(
                    f"{self._beside(name)} doesn't hold the weights of {self.name}: its SHA-256 "
                    f"is {found[:12]}..., the model's spec says {wanted[:12]}...; copy both files "
                    "again, or export the model again"
                )

    @property
    def has_external_data(self) -> bool:
        """Says whether weights lie in files beside the graph.

        Raises:
            ArtifactError: the file isn't ONNX, such a file is missing, or the model came as
                bytes, which have no files beside them.
        """
        for name in self._external_names:
            with self._open_beside(name):
                pass
        return bool(self._external_names)

    def graph(self) -> bytes:
        """Reads the graph's own file.

        Raises:
            ArtifactError: it can't be read.
        """
        if self._content is not None:
            return self._content
        with self._opened() as stream:
            return stream.read()

    def external_data(self) -> dict[str, bytes]:
        """Reads the weights that lie beside the graph, by the names of their files.

        They are read and not mapped: of a mapped file that someone overwrites, a backend would
        read the new bytes in the middle of a run, or end by SIGBUS where it became shorter.

        Raises:
            ArtifactError: a file is missing or can't be read; or the model came as bytes, which
                have no files beside them.
        """
        found = {}
        for name in self._external_names:
            with self._open_beside(name) as stream:
                found[name] = stream.read()
        return found

    def contents_sha256(self) -> str:
        """Computes the SHA-256 of the file and of the weights beside it.

        It identifies a model for what is made of it: engines, compiled models, results. Unlike
        the digest in the spec, it is computed from the bytes that are there.

        Raises:
            ArtifactError: a file can't be read.

        Example:
            ModelFile("model.onnx").contents_sha256()  # 64 hexadecimal digits
        """
        total = hashlib.sha256()
        with self._opened() as stream:
            _update(total, stream)
        for name in self._external_names:
            with self._open_beside(name) as stream:
                _update(total, stream)
        return total.hexdigest()

    def check_unchanged(self) -> None:
        """Refuses files that have changed since they were first looked at.

        Raises:
            ArtifactError: one has been written to or replaced meanwhile.
        """
        for path, stamp in self._stamps.items():
            if _stamp_of(path) != stamp:
                raise ArtifactError(
                    f"{path} changed while it was being loaded; load it again, and replace models "
                    "by renaming a whole new file (docs/serving.md)"
                )

    def hold(self) -> None:
        """Keeps the file open, so that `in_memory` reads this one, whatever has its name by then.

        Raises:
            ArtifactError: it can't be read.
        """
        if self.path is None or self._held is not None:
            return
        try:
            # Closed by `release`, or with this object.
            self._held = self.path.open("rb")
        except OSError as exc:
            raise ArtifactError(f"cannot read {self.name}: {exc.strerror or exc}") from exc
        self._closes = weakref.finalize(self, self._held.close)

    def release(self) -> None:
        """Closes a file that was held."""
        if self._held is not None:
            self._closes()
            self._held = None

    def in_memory(self) -> ModelFile:
        """Reads the file whole, and checks that it is the one that was looked at first.

        Raises:
            ArtifactError: its contents have changed since.
        """
        copy = ModelFile(self.graph(), self.name)
        try:
            copy.verify()
            same = copy.spec.digest == self.spec.digest
        except ArtifactError as exc:
            raise ArtifactError(
                f"{self.name} was overwritten since the model was loaded ({exc}); load the model "
                "again, and replace models by renaming a whole new file (docs/serving.md)"
            ) from exc
        if not same:
            raise ArtifactError(
                f"{self.name} was replaced since the model was loaded; load the model again"
            )
        return copy

    def _path(self) -> Path:
        assert self.path is not None  # noqa: S101 (for mypy: bytes never come here)
        return self.path

    @cached_property
    def _external_names(self) -> list[str]:
        """Returns the names of the files that hold weights, as the graph says them.

        An engine is no graph, and holds its weights itself.
        """
        if self.is_engine:
            return []
        with self._opened() as stream:
            names = external_files(stream, self.name)
        for name in names:
            self._stamp(self._beside(name))
        return names

    def _beside(self, name: str) -> Path:
        if self.path is None:
            raise ArtifactError(
                f"{self.name} came without a folder, but its weights lie in {name} beside the "
                "graph; pass the path of the .onnx file, or export the model without "
                "--external-data"
            )
        return self.path.parent / name

    def _stamp(self, path: Path) -> None:
        self._stamps.setdefault(path, _stamp_of(path))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._content is not None:
            yield io.BytesIO(self._content)
        elif self._held is not None:
            self._held.seek(0)
            yield self._held
        else:
            with _opened(self._path(), self.name) as stream:
                yield stream

    @contextmanager
    def _open_beside(self, name: str) -> Iterator[BinaryIO]:
        path = self._beside(name)
        if not path.is_file():
            raise ArtifactError(
                f"the weights of {self.name} lie in {path}, which isn't there; copy that file too"
            )
        with _opened(path, str(path)) as stream:
            yield stream


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as exc:
        raise ArtifactError(f"cannot read {name}: {exc.strerror or exc}") from exc


def _bytes_of(source: Any) -> bytes:
    """Returns the bytes of what isn't a path."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not callable(getattr(source, "read", None)):
        raise UsageError(
            "a model must be a path, its bytes, or a file that is open for reading bytes, got "
            f"{type(source).__name__}"
        )
    try:
        content = source.read()
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"cannot read the model from the open file: {exc}") from exc
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise UsageError(
            f"the open file gives {type(content).__name__}, not bytes; open it with mode 'rb'"
        )
    return bytes(content)


def _stamp_of(path: Path) -> Stamp:
    """Returns what changes when a file is written to or replaced; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _update(total: Any, stream: BinaryIO) -> None:
    while block := stream.read(_BLOCK):
        total.update(block)
