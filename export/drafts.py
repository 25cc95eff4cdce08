"""Exported models on their way to their files: made, checked, then published together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import onnx
from torch import Tensor, nn

from sigcam.export.writer import needs_external_data, to_onnx, with_spec
from sigcam.runtime.errors import StorageError
from sigcam.runtime.files import write_bytes
from sigcam.runtime.spec import Spec


@dataclass
class Draft:
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
        """What an engine can load: bytes, or a file beside the data file."""
        content: bytes = self.model.SerializeToString()
        if self.data is None:
            return content
        beside = self.data.with_name(self.path.name)
        beside.write_bytes(content)
        return beside


class Drafts:
    """Drafts of files for one folder. What isn't published leaves nothing behind."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._drafts: list[Draft] = []
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
    ) -> Draft:
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
        draft = Draft(path, model, data)
        self._drafts.append(draft)
        return draft

    def publish(self) -> None:
        """Moves every draft to its place: data files first, the artifact last.

        Raises:
            StorageError: a file can't be written.
        """
        for draft in reversed(self._drafts):
            if draft.data is not None:
                try:
                    draft.data.replace(draft.path.with_name(draft.data.name))
                except OSError as exc:
                    raise StorageError(f"cannot write {draft.path}.data: {exc}") from exc
            content = draft.model
            write_bytes(
                draft.path,
                content.SerializeToString()
                if draft.spec is None
                else with_spec(content, draft.spec),
            )

    def _made_folder(self) -> Path:
        if self._folder is None:
            try:
                self._folder = Path(
                    tempfile.mkdtemp(prefix=".sigcam-", dir=self._beside.parent.resolve())
                )
            except OSError as exc:
                raise StorageError(f"cannot write beside {self._beside}: {exc}") from exc
        return self._folder

    def __enter__(self) -> Drafts:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
