"""Artifacts are converted where PyTorch is missing."""

import subprocess
import sys


def test_converting_needs_no_torch():
    code = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None
from sigcam.cli.quantize import command
from sigcam.convert.quantize import int8_head, quantize_artifact
print({"sigcam.train", "sigcam.export"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"
