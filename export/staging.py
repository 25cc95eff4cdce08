"""Exported models on their way to their files: made, checked, then published together."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import onnx
from torch import Tensor, nn

from sigcam.core.errors import StorageError
from sigcam.core.files import write_bytes
from sigcam.core.spec import Spec
from sigcam.export.onnx_model import needs_external_data, to_onnx, with_spec


@dataclass
class StagedFile:
    """A model that isn't published yet.

    Attributes:
        path: where it will be.
        model: the graph, with its weights or with references to the data file.
        data: the file of the weights; None if they are in the model.
        spec: what the file will carry; None for none.
    """

    path: Path
    model: onnx.ModelProto
    data: Path | None
    spec: Spec | None = None

    @property
    def runnable(self) -> bytes | Path:
        """What a backend can load: bytes, or a file beside the data file."""
        content: bytes = self.model.SerializeToString()
        if self.data is None:
            return content
        beside = self.data.with_name(self.path.name)
        beside.write_bytes(content)
        return beside


class StagedFiles:
    """Drafts of files for one folder. What isn't published leaves nothing behind."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._staged: list[StagedFile] = []
        self._folder: Path | None = None

    def export(
        self,
        path: Path,
        module: nn.Module,
        inputs: dict[str, Tensor],
        dynamic: dict[str, dict[int, str]],
        outputs: Sequence[str],
        opset: int,
        external_data: bool,
    ) -> StagedFile:
        """Makes a draft; the arguments are those of `to_onnx`.

        Args:
            path: where it will be.
            module: see `to_onnx`, as are the next four.
            inputs: examples.
            dynamic: sizes that vary.
            outputs: names.
            opset: of the standard.
            external_data: whether the weights get a file of their own in any case.

        Raises:
            ExportError: as `to_onnx`.
            StorageError: the folder can't be written.
        """
        data = None
        if external_data or needs_external_data(module):
            data = self._made_folder() / f"{path.name}.data"
        model = to_onnx(module, inputs, dynamic, outputs, opset, data)
        staged_file = StagedFile(path, model, data)
        self._staged.append(staged_file)
        return staged_file

    def publish(self) -> None:
        """Moves every draft to its place: all of them or none.

        Everything is written beside its place first, so that a full disk changes nothing.
        Files that were there are kept until all new ones are in place, and come back if one
        can't be moved: a graph beside the weights of another would run without a word.

        Raises:
            StorageError: a file can't be written or moved.
        """
        ready = []
        for staged_file in reversed(self._staged):
            if staged_file.data is not None:
                ready.append((staged_file.data, staged_file.path.with_name(staged_file.data.name)))
            model = staged_file.model
            content = (
                model.SerializeToString()
                if staged_file.spec is None
                else with_spec(model, staged_file.spec)
            )
            written = self._made_folder() / staged_file.path.name
            write_bytes(written, content)
            ready.append((written, staged_file.path))
        previous: list[tuple[Path, Path | None]] = []
        try:
            for number, (source, place) in enumerate(ready):
                previous.append((place, self._set_aside(place, number)))
                source.replace(place)
        except OSError as exc:
            for place, kept in reversed(previous):
                _put_back(place, kept)
            raise StorageError(f"cannot write {place}: {exc}; nothing was changed") from exc

    def _set_aside(self, place: Path, number: int) -> Path | None:
        """Where a file that was there is kept; None where there was none."""
        if not place.exists():
            return None
        kept = self._made_folder() / f"previous-{number}"
        place.replace(kept)
        return kept

    def _made_folder(self) -> Path:
        if self._folder is None:
            try:
                self._folder = Path(
                    tempfile.mkdtemp(prefix=".sigcam-", dir=self._beside.parent.resolve())
                )
            except OSError as exc:
                raise StorageError(f"cannot write beside {self._beside}: {exc}") from exc
        return self._folder

    def __enter__(self) -> StagedFiles:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _put_back(place: Path, kept: Path | None) -> None:
    with contextlib.suppress(OSError):  # the first error is the one to tell
        if kept is None:
            place.unlink(missing_ok=True)
        else:
            kept.replace(place)
