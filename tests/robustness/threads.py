"""One session under many threads: the results of the serial run, and memory that doesn't grow."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

import sigcam
from sigcam.core.spec import ClassSelection
from sigcam.core.types import Array
from tests.support.tiny import artifact_graph, tiny_spec, write

SIZES = 50
THREADS = 8
MOST_BYTES = 1024.0
"""The most that memory may grow by in a call."""

_SAMPLES = 400
"""How often memory is read, at least in the long run."""


@dataclass(frozen=True)
class ThreadsResult:
    """What calls from many threads gave.

    Attributes:
        backend: that ran the model.
        threads, calls: how many threads, and calls of each.
        different: calls whose result isn't, bit by bit, that of the serial run.
        slope: bytes by which resident memory grows in a call, by linear regression over the
            second half of all calls.
        error: that of the slope, one standard deviation of the regression.
        peak: the most memory of the process, in bytes.
        seconds: that the calls took.
    """

    backend: str
    threads: int
    calls: int
    different: int
    slope: float
    error: float
    peak: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether all results were right and memory flat."""
        return not self.different and self.slope < MOST_BYTES


def run_threads(folder: Path, calls: int, backend: str = "ort") -> ThreadsResult:
    """Explains images of 50 sizes, as files and as arrays, from eight threads at once.

    Args:
        folder: gets the model and the images.
        calls: of each thread.
        backend: that runs the model.
    """
    spec = tiny_spec(classes=ClassSelection("topk", 2))
    model = write(onnx, artifact_graph(onnx, spec), folder / "model.onnx", spec.to_json())
    images = _images(folder)
    with sigcam.load(model, backend, threads=1) as session:
        wanted = [_digest(session, image) for image in images]
        different, readings = _all_calls(session, images, wanted, calls)
    done, memory, seconds = (np.array(column) for column in zip(*readings, strict=True))
    slope, error = _slope(done, memory)
    return ThreadsResult(
        backend, THREADS, calls, different, slope, error, int(memory.max()), float(seconds[-1])
    )


def _all_calls(
    session: sigcam.Session, images: list[Any], wanted: list[str], calls: int
) -> tuple[int, list[tuple[int, int, float]]]:
    """Returns how many results differed, and (calls done, bytes, seconds) again and again."""
    # Each thread counts in a place of its own.
    done, different = [0] * THREADS, [0] * THREADS
    begun = time.monotonic()

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for index in rng.integers(0, len(images), calls):
            try:
                same = _digest(session, images[index]) == wanted[index]
            except Exception:
                same = False
            different[number] += not same
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    readings = []
    pause = 0.02
    while any(thread.is_alive() for thread in threads):
        time.sleep(pause)
        readings.append((sum(done), _resident(), time.monotonic() - begun))
        if len(readings) == _SAMPLES:  # half as often from here on
            readings, pause = readings[::2], pause * 2
    for thread in threads:
        thread.join()
    gc.collect()
    readings.append((sum(done), _resident(), time.monotonic() - begun))
    return sum(different), readings


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _slope(done: Array, memory: Array) -> tuple[float, float]:
    """Returns slope and standard error of memory over calls, of the second half."""
    kept = done >= done[-1] / 2
    x, y = done[kept].astype(float), memory[kept].astype(float)
    x = x - x.mean()
    if len(x) < 3 or not x.any():
        return 0.0, float("inf")
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt((rest * rest).sum() / (len(x) - 2) / (x * x).sum()))


def _digest(session: sigcam.Session, image: Any) -> str:
    total = hashlib.sha256()
    for one in session.explain(image):
        total.update(one.heatmap.tobytes())
        total.update(repr((one.class_id, one.probability, one.evidence)).encode())
    return total.hexdigest()


def _images(folder: Path) -> list[Any]:
    """Images of 50 sizes: arrays, JPEG and PNG files in turn."""
    rng = np.random.default_rng(5)
    made: list[Any] = []
    for number in range(SIZES):
        height, width = 40 + 7 * number, 400 - 6 * number
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        suffix = (None, ".jpg", ".png")[number % 3]
        if suffix is None:
            made.append(image)
        else:
            cv2.imwrite(str(folder / f"{number}{suffix}"), image)
            made.append(folder / f"{number}{suffix}")
    return made
