"""Keeps an evaluation in a folder: what it is of, its records, and what was wrong with images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import StorageError, UsageError
from sigcam.core.files import write_text
from sigcam.core.inputs import refuse_input
from sigcam.core.progress import Report
from sigcam.core.types import Array
from sigcam.data import Dataset, Problem, Sample
from sigcam.data.dataset import Mask, Polygons
from sigcam.evaluate.model import EvaluatedModel
from sigcam.evaluate.results.records import RECORD, RecordFile

FILE = "evaluation.json"
"""The file that says what the evaluation in a folder is of."""

_WRITTEN_AT_ONCE = 64
"""Images whose records are written together; so many are done again after an interruption."""


class EvaluationStore:
    """The folder of an evaluation, begun or continued.

    Attributes:
        files: the records of each artifact.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[EvaluatedModel],
        dataset: Dataset,
        options: dict[str, Any],
    ) -> None:
        """Begins an evaluation, or takes up the one that is there.

        Args:
            folder: the folder; it is made if it doesn't exist.
            models: the artifacts.
            dataset: the samples that are evaluated.
            options: the options that the records depend on, ready for JSON.

        Raises:
            UsageError: the folder has an evaluation of something else, or an input.
            StorageError: the folder can't be written.
        """
        self._path = folder / FILE
        refuse_input(self._path)
        self.files = tuple(RecordFile(folder / f"{i}.records") for i in range(len(models)))
        self._what = {**_run_of(models, options), "dataset": fingerprint(dataset.samples)}
        self._problems: list[dict[str, Any]] = []
        found = _read(folder)
        if found is None:
            self._begin()
        else:
            self._continue(found)

    def done(self) -> int:
        """Returns the number of images whose records are all there."""
        return min(len(file) for file in self.files)

    def append(self, columns: Sequence[Array]) -> None:
        """Writes the next images' records.

        Args:
            columns: records [p] of each artifact.

        Raises:
            StorageError: a file can't be written.
        """
        for file, records in zip(self.files, columns, strict=True):
            file.append(records)

    def fill(self, rows: Generator[list[Array], None, None], total: int, progress: Report) -> None:
        """Writes the records that are missing, as they come.

        Args:
            rows: yields the next images' records, one for each artifact; it is closed.
            total: the number of images in all.
            progress: called with the number of images done and of all images.

        Raises:
            StorageError: a file can't be written; and what `rows` raises.
        """
        done = self.done()
        progress(done, total)
        with closing(rows):
            while chunk := list(islice(rows, _WRITTEN_AT_ONCE)):
                self.append([np.stack(column) for column in zip(*chunk, strict=True)])
                done += len(chunk)
                progress(done, total)

    def add_problem(self, problem: Problem) -> None:
        """Keeps what is wrong with an image.

        Raises:
            StorageError: the file can't be written.
        """
        kept = {"file": str(problem.file), "line": problem.line, "text": problem.text}
        if kept not in self._problems:  # done again after an interruption
            self._problems.append(kept)
            self._write()

    def problems(self) -> tuple[Problem, ...]:
        """Returns what was wrong with images, in all runs."""
        return tuple(Problem(Path(p["file"]), p["line"], p["text"]) for p in self._problems)

    def _begin(self) -> None:
        self._write()
        for file in self.files:
            file.truncate(0)

    def _continue(self, found: dict[str, Any]) -> None:
        _refuse_other(self._path.parent, found, self._what)
        self._problems = found["problems"]
        count = self.done()
        for file in self.files:  # an interruption may have left some ahead of others
            file.truncate(count)

    def _write(self) -> None:
        content = {"what": self._what, "problems": self._problems}
        write_text(self._path, json.dumps(content, indent=1))


def check_folder(folder: Path, models: Sequence[EvaluatedModel], options: dict[str, Any]) -> None:
    """Refuses a folder that has an evaluation of other artifacts or with other options.

    For who has long work to do before the samples are known; `EvaluationStore` checks them too.

    Args:
        folder: the folder; it is made if it doesn't exist.
        models: the artifacts.
        options: the options that the records depend on, ready for JSON.

    Raises:
        UsageError: the folder has another evaluation.
        StorageError: the folder can't be used.
    """
    found = _read(folder)
    if found is not None:
        _refuse_other(folder, found, _run_of(models, options))


def _run_of(models: Sequence[EvaluatedModel], options: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": str(RECORD),
        "artifacts": [model.digest for model in models],
        "backends": [model.backend_name for model in models],
        "options": options,
    }


def _read(folder: Path) -> dict[str, Any] | None:
    """Reads what a folder's evaluation is of; None where none was begun."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as exc:
        raise StorageError(
            f"{folder} can't be used for the evaluation: {exc}; name another folder"
        ) from exc
    return found


def _refuse_other(folder: Path, found: dict[str, Any], what: dict[str, Any]) -> None:
    there = found.get("what", {})
    other = [key for key, value in what.items() if there.get(key) != value]
    if other:
        raise UsageError(
            f"{folder} has an evaluation with other {', '.join(other)}; name another folder, or "
            "remove that one"
        )


def fingerprint(samples: Sequence[Sample]) -> str:
    """Computes a digest of the samples and of what is known of them.

    Images count by name, size in bytes and date of change, masks in files by path.

    Args:
        samples: the samples, in their order.

    Returns:
        SHA-256 in hexadecimal digits.

    Example:
        >>> import tempfile
        >>> from sigcam.data import Place
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.png")
        ...     path.touch()
        ...     samples = [Sample("a.png", path, Place(path), label) for label in (0, 1)]
        ...     fingerprint(samples[:1]) == fingerprint(samples[1:])
        False
    """
    digest = hashlib.sha256()
    for sample in samples:
        status = sample.path.stat()
        boxes = None if sample.boxes is None else np.asarray(sample.boxes).tolist()
        masks = None if sample.masks is None else [_identity(mask) for mask in sample.masks]
        ignored = [_identity(mask) for mask in sample.ignore], sample.ignore_level
        known = (
            sample.name, status.st_size, status.st_mtime_ns, sample.label, boxes, masks, ignored,
        )  # fmt: skip
        digest.update(repr(known).encode())
        tiles = getattr(sample, "tiles", ())  # of a mosaic
        if tiles:
            digest.update(fingerprint(tiles).encode())
    return digest.hexdigest()


def _identity(mask: Mask) -> object:
    """Returns what makes a mask the same as another, as something whose `repr` is exact."""
    if isinstance(mask, Path):
        return str(mask)
    if isinstance(mask, Polygons):
        return [ring.tolist() for ring in mask.rings]
    return mask.counts.tolist()
