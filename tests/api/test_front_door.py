"""`import sigcam` is cheap and light, and gives every public name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sigcam

HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "numpy", "click")
MEASURE = f"""
import sys, time
start = time.perf_counter()
import sigcam
seconds = time.perf_counter() - start
print(seconds, [name for name in {HEAVY} if name in sys.modules])
"""


def test_import_is_fast_and_light():
    answers = [
        subprocess.run(
            [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
        ).stdout.split(maxsplit=1)
        for _ in range(5)
    ]
    assert {loaded.strip() for _, loaded in answers} == {"[]"}
    assert min(float(seconds) for seconds, _ in answers) < 0.1


def test_help_imports_no_backend():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom sigcam.cli import main\n"
        "CliRunner().invoke(main, ['--help'])\n"
        "print([n for n in ('torch', 'onnx', 'onnxruntime', 'numpy') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_of_every_command(cli):
    assert cli("--help").exit_code == 0
    for command in ("train", "export", "explain", "info", "demo"):
        found = cli(command, "--help")
        assert found.exit_code == 0
        assert "Usage" in found.stdout


@pytest.mark.parametrize("name", sorted(set(sigcam.__all__) - {"__version__"}))
def test_every_public_name_is_there_and_documented(name):
    assert getattr(sigcam, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="explode"):
        sigcam.explode  # noqa: B018
