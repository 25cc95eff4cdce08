"""Where an evaluation stands: its folder, what it is of, and the records so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import StorageError, UsageError
from sigcam.core.files import write_text
from sigcam.core.types import Array
from sigcam.data import Dataset, Problem, Sample
from sigcam.evaluate.model import Model
from sigcam.evaluate.results.records import RECORD, RecordFile

FILE = "evaluation.json"


class State:
    """The folder of an evaluation, begun or continued.

    Attributes:
        files: the records of each artifact.
    """

    def __init__(
        self, folder: Path, models: Sequence[Model], dataset: Dataset, options: dict[str, Any]
    ) -> None:
        """Looks what is there.

        Raises:
            UsageError: the folder has an evaluation of something else.
            StorageError: it can't be written.
        """
        self._path = folder / FILE
        self.files = tuple(RecordFile(folder / f"{i}.records") for i in range(len(models)))
        self._what = {
            "format": str(RECORD),
            "artifacts": [model.digest for model in models],
            "backends": [model.backend_name for model in models],
            "dataset": fingerprint(dataset.samples),
            "options": options,
        }
        self._problems: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(self._path.read_text()) if self._path.is_file() else None
        except (OSError, ValueError) as exc:
            raise StorageError(
                f"{folder} can't be used for the evaluation: {exc}; name another folder"
            ) from exc
        if found is not None and found.get("what") != self._what:
            other = [key for key, value in self._what.items() if found["what"].get(key) != value]
            raise UsageError(
                f"{folder} has an evaluation with other {', '.join(other)}; name another folder, "
                "or remove that one"
            )
        if found is None:
            self._write()
            for file in self.files:
                file.truncate(0)
        else:
            self._problems = found["problems"]
            count = self.done()
            for file in self.files:  # an interruption may have left some ahead of others
                file.truncate(count)

    def done(self) -> int:
        """Images whose records are all there."""
        return min(len(file) for file in self.files)

    def append(self, columns: Sequence[Array]) -> None:
        """Writes the next records [p] of each artifact."""
        for file, records in zip(self.files, columns, strict=True):
            file.append(records)

    def add_problem(self, problem: Problem) -> None:
        """Keeps what was wrong with an image."""
        kept = {"file": str(problem.file), "line": problem.line, "text": problem.text}
        if kept not in self._problems:  # done again after an interruption
            self._problems.append(kept)
            self._write()

    def problems(self) -> tuple[Problem, ...]:
        """What was wrong with images, of all runs."""
        return tuple(Problem(Path(p["file"]), p["line"], p["text"]) for p in self._problems)

    def _write(self) -> None:
        content = {"what": self._what, "problems": self._problems}
        write_text(self._path, json.dumps(content, indent=1))


def fingerprint(samples: Sequence[Sample]) -> str:
    """Of the samples and what is known of them; images count by name, size and date."""
    digest = hashlib.sha256()
    for sample in samples:
        status = sample.path.stat()
        boxes = None if sample.boxes is None else np.asarray(sample.boxes).tolist()
        masks = None if sample.masks is None else [str(mask) for mask in sample.masks]
        known = (sample.name, status.st_size, status.st_mtime_ns, sample.label, boxes, masks)
        digest.update(repr(known).encode())
    return digest.hexdigest()
