"""Holds exported models until all of them are checked, then publishes them together."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from sigcam.core.artifact import read_spec, with_spec
from sigcam.core.digest import digest_of
from sigcam.core.errors import StorageError
from sigcam.core.files import write_bytes
from sigcam.core.inputs import refuse_input
from sigcam.core.spec import Spec
from sigcam.export.onnx_model import GraphSignature, needs_external_data, to_onnx
from sigcam.export.options import ExportOptions


@dataclass
class StagedModel:
    """A model that isn't published yet.

    Attributes:
        path: where the model will be.
        model: the graph, with its weights or with references to the data file.
        data_file: the file of the weights, in the staging folder; None if they are in the
            model.
        spec: what the file will carry; None for none. Publishing fills in what is known of the
            files only then: digests, and the artifact's head graph.
    """

    path: Path
    model: onnx.ModelProto
    data_file: Path | None
    spec: Spec | None = None

    @property
    def runnable(self) -> bytes | Path:
        """Returns what a backend can load: bytes, or a file beside the data file.

        Raises:
            StorageError: that file can't be written.
        """
        content: bytes = self.model.SerializeToString()
        if self.data_file is None:
            return content
        model_file = self.data_file.with_name(self.path.name)
        write_bytes(model_file, content)
        return model_file


class StagingFolder:
    """Holds models until all of them are checked, and publishes them together.

    It is a temporary folder beside the target, made when it is first needed, so that files
    can be moved to their places without a copy. What isn't published leaves nothing behind.
    """

    def __init__(self, target: Path) -> None:
        """Makes no folder yet.

        Args:
            target: the first of the files; the staging folder will be beside it.
        """
        self._target = target
        self._models: list[StagedModel] = []
        self._folder: Path | None = None

    def export(
        self, path: Path, module: nn.Module, signature: GraphSignature, options: ExportOptions
    ) -> StagedModel:
        """Exports a module and keeps it here.

        Args:
            path: where the model will be, in the target's folder.
            module: what is exported.
            signature: the module's inputs and outputs.
            options: `opset` and `external_data` count.

        Returns:
            The model. Its `spec` can be set until it is published.

        Raises:
            ExportError: the module can't be exported.
            StorageError: the folder can't be written.
        """
        data_file = None
        if options.external_data or needs_external_data(module, signature.kept):
            data_file = self._existing_folder() / f"{path.name}.data"
        model = to_onnx(module, signature, options.opset, data_file)
        if data_file is not None and not data_file.stat().st_size:
            data_file.unlink()  # all tensors are small enough for the graph's own file
            data_file = None
        staged = StagedModel(path, model, data_file)
        self._models.append(staged)
        return staged

    def publish(self) -> None:
        """Moves every model to its place: all of them or none.

        Everything is written here first, so that a full disk changes nothing. Of several files,
        those that were there are moved here, the artifact first, before a new one takes its
        place, and come back if one can't be moved: a graph beside the weights of another would
        run without a word. Should the process be killed meanwhile, files are missing, and the
        artifact is the last to appear.

        Raises:
            StorageError: a file can't be written or moved.
            UsageError: a file that is read would be written over.
        """
        moves = self._written_files()
        for _, place in moves:
            refuse_input(place)
        previous: list[tuple[Path, Path | None]] = []
        try:
            if len(moves) > 1:
                for number, (_, place) in enumerate(reversed(moves)):
                    previous.append((place, self._keep_previous(place, number)))
            for source, place in moves:
                source.replace(place)
        except OSError as exc:
            for place, kept in reversed(previous):
                _restore(place, kept)
            raise StorageError(f"cannot write {place}: {exc}; nothing was changed") from exc

    def _written_files(self) -> list[tuple[Path, Path]]:
        """Writes every model here; returns each file and its place, weights before graphs.

        The head graph, which is exported last, is written first: the artifact's spec has its
        digest.
        """
        moves = []
        head_digest = None
        for staged in reversed(self._models):
            if staged.data_file is not None:
                moves.append((staged.data_file, staged.path.with_name(staged.data_file.name)))
            written = self._existing_folder() / staged.path.name
            head_digest = _write(staged, written, head_digest)
            moves.append((written, staged.path))
        return moves

    def _keep_previous(self, place: Path, number: int) -> Path | None:
        """Moves a file that is in the way into this folder; None where there is none."""
        if not place.exists():
            return None
        kept = self._existing_folder() / f"previous-{number}"
        place.replace(kept)
        return kept

    def _existing_folder(self) -> Path:
        if self._folder is None:
            parent = self._target.parent.resolve()
            try:
                self._folder = Path(tempfile.mkdtemp(prefix=".sigcam-", dir=parent))
            except OSError as exc:
                raise StorageError(f"cannot write beside {self._target}: {exc}") from exc
        return self._folder

    def __enter__(self) -> StagingFolder:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _write(staged: StagedModel, written: Path, head_digest: str | None) -> str | None:
    """Writes a model with the digests in its spec; returns its own."""
    if staged.spec is None:
        write_bytes(written, staged.model.SerializeToString())
        return None
    data = {}
    if staged.data_file is not None:
        with staged.data_file.open("rb") as stream:
            data[staged.data_file.name] = digest_of(stream)
    spec = replace(staged.spec, external_data=data, head_digest=head_digest)
    write_bytes(written, with_spec(staged.model, spec))
    staged.spec = read_spec(written)
    return staged.spec.digest


def _restore(place: Path, kept: Path | None) -> None:
    """Brings back the file that was at a place, or removes what is there now."""
    with contextlib.suppress(OSError):  # the first error is the one to tell
        if kept is None:
            place.unlink(missing_ok=True)
        else:
            kept.replace(place)
