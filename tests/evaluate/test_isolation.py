"""The metrics import no training or export library and no backend."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxruntime", "scipy", "skimage"):
    sys.modules[name] = None
import sigcam.evaluate.localization.box_accuracy, sigcam.evaluate.faithfulness.confidence
import sigcam.evaluate.localization.pixel_precision, sigcam.evaluate.localization.pointing
import sigcam.evaluate.faithfulness.insertion_deletion, sigcam.evaluate.faithfulness.road
assert not {"sigcam.train", "sigcam.export", "sigcam.runtime.session"} & set(sys.modules)
"""


def test_metrics_import_only_numpy_and_opencv():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_onnx_is_imported():
    code = (
        "import sys, sigcam.evaluate, sigcam.evaluate.reports;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
