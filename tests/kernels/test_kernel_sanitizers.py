"""clamp_combine.cu under ThreadSanitizer and AddressSanitizer, every CUDA thread a real one.

Each tool is also given a copy of the source with a fault planted, which it must report.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.plan import Heatmaps, Inputs, plan
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps, to_bytes
from tests.support.host_cuda import SOURCE, launches, program, run_as_program

pytestmark = pytest.mark.slow

TOOLS = {"thread": "ThreadSanitizer", "address": "AddressSanitizer"}
THREADS, PROCESSORS = 64, 2


def planned(inputs, *, interpolation="bilinear", bytes_=False, alignment=16):
    """A crop box inside the heatmap, sizes that are multiples of nothing."""
    rows, columns = Axis(9, 1, 8, inputs.height, 0.5, -0.7), whole(18, inputs.width)
    heatmaps = Heatmaps(rows, columns, bytes_, interpolation, alignment)
    return plan(inputs, heatmaps, processors=PROCESSORS, threads=THREADS)


CASES = {
    # Blocks that share a heatmap, several classes per block and a last one with fewer.
    "chunks": planned(Inputs(1, 90, 5, 3, 5)),
    "half": planned(Inputs(2, 64, 3, 3, 2, half=True), bytes_=True),
    "positions": planned(Inputs(1, 70, 3, 5, 2, per_position=True, alignment=4), alignment=1),
    "half positions": planned(Inputs(1, 33, 4, 4, 1, half=True, per_position=True)),
    "bicubic": planned(Inputs(1, 48, 4, 4, 2, clamp=False), interpolation="bicubic"),
    "tiles": planned(Inputs(1, 3, 20, 17, 1, alignment=4), bytes_=True, interpolation="bicubic"),
}


@pytest.fixture(scope="module", params=list(TOOLS))
def tool(request):
    return request.param


def built(folder, tool, plans, text):
    """The program with the kernels of these plans only: the others take longer to compile."""
    nothing = dict.fromkeys(("features", "weights", "heatmaps", "valid", "workspace"), 0)
    used = {step.kernel for one in plans for step, _ in launches(one, *one.arguments(**nothing))}
    others = rf"^SIGCAM_(COMBINE|ENLARGE)\((?!({'|'.join(used)}),).*\n"
    source = folder / "kernels.cu"
    source.write_text(re.sub(others, "", text, flags=re.MULTILINE))
    return program(folder / tool, f"-fsanitize={tool}", source=source)


@pytest.fixture(scope="module")
def sanitized(tool, tmp_path_factory):
    return built(tmp_path_factory.mktemp("host"), tool, CASES.values(), SOURCE.read_text())


def data(inputs):
    random = np.random.default_rng(0)
    kind = np.float16 if inputs.half else np.float32
    tail = (inputs.height, inputs.width)
    features = random.normal(size=(inputs.batch, inputs.channels, *tail)).clip(0)
    shape = (inputs.batch, inputs.classes, inputs.channels, *(tail if inputs.per_position else ()))
    return features.astype(kind), random.normal(size=shape).astype(kind)


@pytest.mark.parametrize("name", CASES)
def test_no_report(sanitized, tmp_path, name):
    case = CASES[name]
    features, weights = data(case.inputs)
    done, result = run_as_program(sanitized, tmp_path, case, features, weights)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    cams = clamp_combine(features.astype(np.float32), weights.astype(np.float32), case.inputs.clamp)
    want, valid = normalised_heatmaps(
        cams, case.heatmaps.rows, case.heatmaps.columns, case.heatmaps.interpolation
    )
    assert valid.all()
    np.testing.assert_array_equal(result.valid, 1)
    if case.heatmaps.bytes_:
        assert np.abs(result.heatmaps.astype(int) - to_bytes(want)).max() <= 1
    else:
        np.testing.assert_allclose(result.heatmaps, want, atol=1e-4)


FAULTS = {
    # Neighbours' sums are read before they are all there.
    ("thread", "barrier"): (
        "                sums[lane * width + thread % a.tile_units * VECTOR + i] = acc[k][i];\n"
        "        }\n        __syncthreads();\n",
        "                sums[lane * width + thread % a.tile_units * VECTOR + i] = acc[k][i];\n"
        "        }\n",
    ),
    # The last block reads what others wrote without a fence of theirs. (Without its own, it
    # has still passed the one before its own count, mostly after theirs: not always seen.)
    ("thread", "fence"): (
        "    __threadfence();\n    __syncthreads();\n    if (threadIdx.x == 0) {\n"
        "        const unsigned before",
        "    __syncthreads();\n    if (threadIdx.x == 0) {\n        const unsigned before",
    ),
    # The pixels after a row's end, in the last row after the heatmaps' end.
    ("address", "write"): ("if (!together && x < width) out[x]", "if (!together) out[x]"),
    # A vector of features where only a part of one is left.
    ("address", "read"): ("if (count >= VECTOR) {", "if (count >= 1) {"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=" ".join)
def test_planted_faults_are_reported(tmp_path, fault):
    tool, _ = fault
    text = SOURCE.read_text()
    planted = text.replace(*FAULTS[fault])
    assert planted != text
    every = [planned(inputs) for inputs in (Inputs(1, 90, 5, 3, 5), Inputs(1, 9, 3, 3, 1))]
    made = built(tmp_path, tool, every, planted)
    reports = []
    for one in every:
        done, _ = run_as_program(made, tmp_path, one, *data(one.inputs))
        reports.append(done.stderr)
    assert TOOLS[tool] in "".join(reports)
