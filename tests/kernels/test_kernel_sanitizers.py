"""clamp_combine.cu under ThreadSanitizer and AddressSanitizer, every CUDA thread a real one.

Each tool is also given a copy of the source with a fault planted, which it must report.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.compile import source
from sigcam.kernels.plan import plan
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps, to_bytes
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs
from tests.support.host_cuda import program, run_as_program

pytestmark = pytest.mark.slow

TOOLS = {"thread": "ThreadSanitizer", "address": "AddressSanitizer"}
THREADS, PROCESSORS = 64, 2


def planned(inputs, *, interpolation="bilinear", bytes_=False, alignment=16, ragged=False):
    """A crop box inside the heatmap, sizes that are multiples of nothing; two strips of rows."""
    rows, columns = Axis(19, 1, 18, inputs.height, 0.2, -0.7), whole(18, inputs.width)
    if ragged:
        rows = [rows, whole(17, inputs.height)]
        columns = [columns, Axis(132, 3, 130, inputs.width, 0.02, -0.3)]
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
    "ragged": planned(Inputs(2, 40, 3, 5, 3), ragged=True),
    "cams": planned(Cams(2, 33, 7, 9), bytes_=True, ragged=True),
    "cams bicubic": planned(Cams(1, 3, 7, 9), interpolation="bicubic"),
}


@pytest.fixture(scope="module", params=list(TOOLS))
def tool(request):
    return request.param


def built(folder, tool, plans, text):
    """The program with the kernels of these plans only: the others take longer to compile."""
    nothing = {"heatmaps": 0, "valid": 0, "workspace": 0}
    used = {step.kernel for one in plans for step, _ in one.launches(*one.arguments(**nothing))}
    others = rf"^SIGCAM_(COMBINE|EXTREMES|ENLARGE)\((?!({'|'.join(used)}),).*\n"
    path = folder / "kernels.cu"
    path.write_text(re.sub(others, "", text, flags=re.MULTILINE))
    # What only other kernels use is left over.
    return program(folder / tool, f"-fsanitize={tool}", "-Wno-unused-function", source=path)


@pytest.fixture(scope="module")
def sanitized(tool, tmp_path_factory):
    return built(tmp_path_factory.mktemp("host"), tool, CASES.values(), source())


def data(inputs):
    random = np.random.default_rng(0)
    tail = (inputs.height, inputs.width)
    if isinstance(inputs, Cams):
        cams = random.normal(size=(inputs.batch, inputs.classes, *tail))
        return {"cams": cams.astype(np.float32)}
    kind = np.float16 if inputs.half else np.float32
    features = random.normal(size=(inputs.batch, inputs.channels, *tail)).clip(0)
    shape = (inputs.batch, inputs.classes, inputs.channels, *(tail if inputs.per_position else ()))
    weights = random.normal(size=shape)
    return {"features": features.astype(kind), "weights": weights.astype(kind)}


@pytest.mark.parametrize("name", CASES)
def test_no_report(sanitized, tmp_path, name):
    case = CASES[name]
    given = data(case.inputs)
    done, result = run_as_program(sanitized, tmp_path, case, **given)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    if "cams" in given:
        cams = given["cams"]
    else:
        wide = [given[name].astype(np.float32) for name in ("features", "weights")]
        cams = clamp_combine(*wide, case.inputs.clamp)
    np.testing.assert_array_equal(result.valid, 1)
    each = case.heatmaps.axes()
    for image, made in enumerate(result.heatmaps):
        axes = each[image if case.heatmaps.ragged else 0]
        want, _ = normalised_heatmaps(cams[image : image + 1], *axes, case.heatmaps.interpolation)
        if case.heatmaps.bytes_:
            assert np.abs(made.astype(int) - to_bytes(want[0])).max() <= 1
        else:
            np.testing.assert_allclose(made, want[0], atol=1e-4)


FAULTS = {
    # Neighbours' sums are read before they are all there.
    ("thread", "barrier"): (
        "own[j * a.lanes * width + i] = sums.of[k + j][i];\n        }\n        __syncthreads();\n",
        "own[j * a.lanes * width + i] = sums.of[k + j][i];\n        }\n",
    ),
    # The sums take the place of weights that others still read.
    ("thread", "reuse"): (
        "k += TOGETHER) {\n        __syncthreads();\n",
        "k += TOGETHER) {\n",
    ),
    # The last block looks for extremes in cams that aren't all there.
    ("thread", "cams"): ("    if (!a.bilinear) return;\n    __syncthreads();\n", ""),
    # The last block reads what others wrote without a fence of theirs. (Without its own, it
    # has still passed the one before its own count, mostly after theirs: not always seen.)
    ("thread", "fence"): (
        "    __threadfence();\n    __syncthreads();\n    if (threadIdx.x == 0) {\n"
        "        const unsigned before",
        "    __syncthreads();\n    if (threadIdx.x == 0) {\n        const unsigned before",
    ),
    # The pixels after a row's end, in the last row after the heatmaps' end.
    ("address", "write"): ("if (column(i) < width) out[WARP * i]", "out[WARP * i]"),
    # A row of a strip after the heatmaps' end.
    ("address", "strip"): (
        "const int end = min(first + strip, height);",
        "const int end = first + strip;",
    ),
    # The elements after the last channel, where only a part of a vector is left.
    ("address", "read"): (
        "        if (i < count) pack.values[i]",
        "        if (i <= count) pack.values[i]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS, ids=" ".join)
def test_planted_faults_are_reported(tmp_path, fault):
    tool, _ = fault
    text = source()
    planted = text.replace(*FAULTS[fault])
    assert planted != text
    every = [planned(inputs) for inputs in (Inputs(1, 90, 5, 3, 5), Inputs(1, 9, 3, 3, 1))]
    made = built(tmp_path, tool, every, planted)
    reports = []
    for one in every:
        done, _ = run_as_program(made, tmp_path, one, **data(one.inputs))
        reports.append(done.stderr)
    assert TOOLS[tool] in "".join(reports)
