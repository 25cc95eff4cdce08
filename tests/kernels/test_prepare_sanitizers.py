"""prepare.cuh under ThreadSanitizer and AddressSanitizer, every CUDA thread a real one.

Each tool is also given copies of the source with a fault planted, which it must report.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import place
from sigcam.kernels.compile import source
from sigcam.kernels.prepare import Images, plan
from sigcam.kernels.reference import prepared
from sigcam.runtime.backends.cuda.preparation import input_axis, values_of
from tests.support.host_cuda import program, run_case

pytestmark = pytest.mark.slow

TOOLS = {"thread": "ThreadSanitizer", "address": "AddressSanitizer"}

CASES = {
    # Name: images [B, H, W, n], how they are prepared, and whether they come as planes.
    "crop": ((2, 23, 31, 3), Preprocessing(9, 13, "crop", 16), False),
    "planes": ((2, 37, 19, 3), Preprocessing(16, 16, "stretch"), True),
    "border": ((1, 11, 29, 3), Preprocessing(13, 11, "letterbox", layout="float32_nchw"), False),
    "cells of 2 x 2": ((1, 24, 24, 1), Preprocessing(12, 12, "stretch", mean=(0.4,), std=(0.2,)),
                       False),
    "larger": ((1, 5, 7, 3), Preprocessing(17, 17, "stretch", layout="float32_nchw"), True),
}  # fmt: skip


def run(built, folder, name):
    """Runs a case in a process of its own; returns the process, what was made and the right one."""
    shape, preprocessing, planar = CASES[name]
    images = np.random.default_rng(len(name)).integers(0, 256, shape, dtype=np.uint8)
    batch, height, width, n = shape
    placement, values = place(preprocessing, height, width), values_of(preprocessing)
    axes = input_axis(placement.rows), input_axis(placement.columns)
    planned = plan(Images(batch, height, width, n, planar), *axes, values)
    want = np.stack([prepared(image, *axes, values) for image in images])
    given = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if planar else images
    out = np.full_like(want, 0xAB if want.dtype == np.uint8 else np.nan)
    steps = [(planned.launch, planned.arguments(0, 0))]
    done, left = run_case(built, folder, {"images": given, "inputs": out}, steps)
    return done, None if left is None else left["inputs"], want


def built(folder, tool, text):
    """The program with the kernels of this test only: the others take longer to compile."""
    path = folder / "kernels.cu"
    path.write_text(re.sub(r"^SIGCAM_(COMBINE|EXTREMES|ENLARGE)\(.*\n", "", text, flags=re.M))
    return program(folder / tool, f"-fsanitize={tool}", "-Wno-unused-function", source=path)


@pytest.fixture(scope="module", params=list(TOOLS))
def sanitized(request, tmp_path_factory):
    return built(tmp_path_factory.mktemp("host"), request.param, source())


@pytest.mark.parametrize("name", CASES)
def test_no_report(sanitized, tmp_path, name):
    done, made, want = run(sanitized, tmp_path, name)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    step = 1 if made.dtype == np.uint8 else np.abs(CASES[name][1].std).min() ** -1 / 255
    assert np.abs(made.astype(float) - want).max() <= 1.001 * step


FAULTS = {
    # Two threads write to a place: the last channel of one pixel and the first of the next.
    ("thread", "channels"): (
        "out[static_cast<long long>(pixel) * a.channels + c]",
        "out[static_cast<long long>(pixel) * (a.channels - 1) + c]",
    ),
    # Threads after the last pixel go on.
    ("address", "pixels"): ("if (pixel >= size) return;", ""),
    # Behind the last cell's centre there is no next cell.
    ("address", "next"): (
        "const int next = min(cell + 1, axis.cells - 1);", "const int next = cell + 1;",
    ),
    # Channels lie as far apart as rows do.
    ("address", "channels"): ("pixels + c * a.channel", "pixels + c * a.row"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=" ".join)
def test_planted_faults_are_reported(tmp_path, fault):
    tool, _ = fault
    text = source()
    planted = text.replace(*FAULTS[fault])
    assert planted != text
    made = built(tmp_path, tool, planted)
    reports = []
    for name in CASES:
        done, _, _ = run(made, tmp_path, name)
        reports.append(done.stderr)
    assert TOOLS[tool] in "".join(reports)
