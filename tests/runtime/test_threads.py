import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sigcam.runtime.session import load

THREADS, REQUESTS = 8, 200


def resident_bytes():
    """Memory in use; None where the system doesn't say (only Linux has this file)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    pages = int(statm.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fingerprint(results):
    return [
        (one.class_id, one.probability, one.evidence, one.cam.tobytes(), one.heatmap.tobytes())
        for one in results
    ]


@pytest.mark.parametrize(
    ("backend", "profile", "options"),
    [
        ("ort", "fused", {}),
        ("ort", "split", {}),
        ("openvino", "fused", {}),
        ("openvino", "split", {"mode": "throughput"}),
    ],
)
def test_threads_get_what_one_would_get_and_memory_stays_flat(
    make_artifact, jpeg, backend, profile, options
):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60 + 7 * i, 120 - 5 * i, 3), dtype=np.uint8) for i in range(10)]
    images[::3] = [jpeg(one, 6) for one in images[::3]]
    requests = [{"images": one, "top_k": k} for one in images for k in (1, 3)]
    requests += [{"images": one, "classes": ["blue", 0]} for one in images]

    with load(make_artifact(profile=profile), backend, threads=1, **options) as session:
        alone = [fingerprint(session.explain(**request)) for request in requests]
        sizes = []

        def work(thread):
            for i in range(REQUESTS):
                which = (thread * 7 + i) % len(requests)
                assert fingerprint(session.explain(**requests[which])) == alone[which]
                if thread == 0 and i in (REQUESTS // 4, REQUESTS - 1):
                    sizes.append(resident_bytes())

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
    if None not in sizes:
        # The maps of all requests between are some 100 MB: kept results would show.
        assert sizes[1] - sizes[0] < 16 * 2**20
