"""Keeps a run's state and its metrics on disk, and Ctrl-C away while the state isn't whole.

Both files are written whole or not at all. The checkpoint holds tensors and plain
containers only and is read with `weights_only=True`.
"""

from __future__ import annotations

import csv
import io
import signal
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sigcam.core.errors import TrainingError
from sigcam.core.files import write_bytes, write_text
from sigcam.train.settings import EpochMetrics

FORMAT = 2
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"


@dataclass
class State:
    """Where a run stands.

    Attributes:
        epoch: whole epochs done.
        step: steps done in the epoch after those.
        sums: of that epoch so far, float64: loss, samples, and the counts of the accuracy; empty
            before its first step.
        seconds: that it has taken so far.
        history: of the whole epochs.
        first_gradient: largest entry of the first gradient; L-BFGS only.
    """

    epoch: int = 0
    step: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)
    first_gradient: float | None = None


def save_checkpoint(
    folder: Path,
    run: Mapping[str, Any],
    state: State,
    classifier: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Any],
) -> None:
    """Writes `checkpoint.pt` and `metrics.csv` into `folder`.

    Args:
        folder: made if needed.
        run: what a resumed run must agree on; plain JSON values.
        state: where the run stands.
        classifier: state dict of the trained part.
        optimizer: the optimiser's state dict.

    Raises:
        StorageError: the folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run, tensors = {"seed": 0}, {"weight": torch.ones(2)}
        ...     save_checkpoint(Path(folder), run, State(epoch=1), tensors, {})
        ...     state, classifier, _ = load_checkpoint(Path(folder), run)
        >>> state.epoch, classifier["weight"]
        (1, tensor([1., 1.]))
    """
    content = {
        "format": FORMAT,
        "run": dict(run),
        "state": asdict(state),
        "classifier": dict(classifier),
        "optimizer": dict(optimizer),
    }
    # Through memory: torch's own writer turns a full disk into a RuntimeError.
    made = io.BytesIO()
    torch.save(content, made)
    write_bytes(folder / CHECKPOINT, made.getbuffer())
    write_metrics(folder, state.history)


def load_checkpoint(
    folder: Path, run: Mapping[str, Any]
) -> tuple[State, dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_checkpoint` wrote: state, classifier, optimiser.

    Raises:
        TrainingError: there is none, it is damaged or newer, or it is of another run;
            names what differs.
    """
    file = folder / CHECKPOINT
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load doesn't compare the sums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the sum of {damaged} doesn't fit")
        content = torch.load(file, map_location="cpu", weights_only=True)
        version, before = content["format"], content["run"]
        state = State(**content["state"])
        state.history = [EpochMetrics(**entry) for entry in content["state"]["history"]]
        classifier, optimizer = content["classifier"], content["optimizer"]
    except FileNotFoundError as exc:
        raise TrainingError(f"there is no checkpoint {file} to resume; start without it") from exc
    except Exception as exc:  # torch.load raises what its parts raise
        raise TrainingError(f"{file} is no readable checkpoint; start the run anew") from exc
    if version != FORMAT:
        raise TrainingError(f"{file} has format {version}, this sigcam reads {FORMAT}")
    differing = sorted(k for k in run.keys() | before.keys() if run.get(k) != before.get(k))
    if differing:
        told = ", ".join(f"{k}: {before.get(k)!r} before, {run.get(k)!r} now" for k in differing)
        raise TrainingError(f"{file} is of another run ({told}); use the same or start anew")
    return state, classifier, optimizer


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Writes `metrics.csv`: a header and one line per epoch, without columns that have no value.

    Raises:
        StorageError: the folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_metrics(Path(folder), [EpochMetrics(1, 0.25, 0.9, 2.0, 50.0)])
        ...     print(Path(folder, "metrics.csv").read_text(), end="")
        epoch,loss,top1,seconds,samples_per_s
        1,0.25,0.9,2,50
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f.name for f in fields(EpochMetrics)]
    names = [n for n in names if any(getattr(entry, n) is not None for entry in history)]
    writer.writerow(names)
    for entry in history:
        writer.writerow([_cell(getattr(entry, name)) for name in names])
    write_text(folder / METRICS, text.getvalue())


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class Interruption:
    """While entered, the first Ctrl-C is only noted; a second one interrupts at once.

    An optimiser's step changes many tensors; an exception in its middle would leave
    neither the old nor the new state. The training loop looks at `asked` between steps.
    In a thread other than the main one (where Python allows no signal handlers) it does
    nothing, and `asked` stays False.

    Example:
        >>> with Interruption() as interruption:
        ...     interruption.asked
        False
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> Interruption:  # noqa: PYI034 (Self came with Python 3.11)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
