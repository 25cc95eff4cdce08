"""The examples of embedding: without a GPU they compile, and say what is missing."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import EXAMPLES
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

# ruff: noqa: F811 (fixtures come in as arguments of the same name)

NAMES = (
    "pycuda_embed", "torch_embed", "device_torch", "device_cupy", "device_pycuda",
    "device_nvimgcodec",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name, tmp_path):
    py_compile.compile(str(EXAMPLES / f"{name}.py"), cfile=str(tmp_path / "out.pyc"), doraise=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_a_gpu(name, make_artifact):
    more = [str(make_artifact(profile="split")), "cat.jpg"] if name.startswith("device") else []
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *more],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "this example needs an NVIDIA GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_judgement(monkeypatch):
    """The comparison fails on wrong heatmaps and wrong flags."""
    spec = importlib.util.spec_from_file_location("embedded", EXAMPLES / "pycuda_embed.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "SHAPE", (1, 4, 3, 3))
    monkeypatch.setattr(example, "SIZE", (6, 6))
    features = np.random.default_rng(0).random((1, 4, 3, 3), np.float32)
    weights = np.ones((1, 2, 4), np.float32)
    axes = example.whole(6, 3), example.whole(6, 3)
    heatmaps, valid = example.normalised_heatmaps(example.clamp_combine(features, weights), *axes)
    assert example.judge(features, weights, heatmaps, valid.astype(np.uint8)) == 0
    assert example.judge(features, weights, heatmaps + 0.01, valid.astype(np.uint8)) == 1
    assert example.judge(features, weights, heatmaps, 1 - valid.astype(np.uint8)) == 1
