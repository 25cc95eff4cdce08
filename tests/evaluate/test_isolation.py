"""The metrics import no training or export library and no backend; the package nothing at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sigcam.evaluate

RUNS = {"EvaluateOptions", "Evaluation", "MosaicOptions", "evaluate_artifacts", "evaluate_mosaics"}
METRICS = sorted(set(sigcam.evaluate.__all__) - RUNS)

METRICS_ALONE = f"""
import sys
for name in ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "scipy", "skimage"):
    sys.modules[name] = None
from sigcam.evaluate import {", ".join(METRICS)}
assert not {{"sigcam.train", "sigcam.export", "sigcam.runtime"}} & set(sys.modules)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_metrics_import_only_numpy_and_opencv():
    run(METRICS_ALONE)


def test_neither_torch_nor_onnx_is_imported():
    code = (
        "import sys, sigcam.evaluate.run, sigcam.evaluate.reports;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    assert run(code) == "[]"


def test_the_package_itself_imports_nothing():
    code = (
        "import sys, sigcam.evaluate;"
        "print([n for n in sys.modules if n.startswith('sigcam.evaluate.')],"
        "sorted({'numpy', 'cv2', 'sigcam.runtime', 'sigcam.data'} & sys.modules.keys()))"
    )
    assert run(code) == "[] []"


@pytest.mark.parametrize("name", sigcam.evaluate.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(sigcam.evaluate, name).__doc__
    assert name in dir(sigcam.evaluate)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'sigcam\.evaluate' has no attribute 'score_map'"):
        sigcam.evaluate.score_map  # noqa: B018
