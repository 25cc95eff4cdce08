"""The backend alone: seconds a run at each batch size, as JSON.

python -m benchmarks.serving.bare MODEL SECONDS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from sigcam.runtime.model import ExportedModel

SIZES = (1, 2, 4, 8, 16)


def main(path: Path, seconds: float) -> None:
    """Runs the batch sizes in alternation, and prints the median of each."""
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    with ExportedModel.open(path, "ort", with_head=False) as model:
        (image,) = (one for one in model.backend.inputs if one.name == "image")
        shape = [one or 1 for one in image.shape[1:]]
        rng = np.random.default_rng(0)
        batches = {one: rng.integers(0, 256, (one, *shape), np.uint8) for one in SIZES}
        for batch in batches.values():
            model.run(batch)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[SIZES[-1]]) < 3:
            for size, batch in batches.items():
                begin = time.perf_counter()
                model.run(batch)
                times[size].append(time.perf_counter() - begin)
    print(json.dumps({size: statistics.median(values) for size, values in times.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
