"""The package openvino_xai, whose last release is older than the OpenVINO that we test with.

It imports `openvino.runtime`, which OpenVINO 2026 no longer has, and its requirements name old
versions; so it is in no extra. `pip install --no-deps openvino_xai` is enough for what the
comparisons use of it.
"""

import importlib
import importlib.util
import sys
from unittest import mock

import pytest


def imported(name):
    """A module of openvino_xai; skips the test where the package isn't installed."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("torch")
    if importlib.util.find_spec("openvino_xai") is None:
        pytest.skip("needs `pip install --no-deps openvino_xai`")
    old = {"openvino.runtime": openvino}
    for part in ("opset10",):
        old[f"openvino.runtime.{part}"] = importlib.import_module(f"openvino.{part}")
    with mock.patch.object(openvino, "runtime", openvino, create=True):
        added = [key for key in old if key not in sys.modules]
        sys.modules.update({key: old[key] for key in added})
        try:
            return importlib.import_module(f"openvino_xai.{name}")
        finally:
            for key in added:
                del sys.modules[key]
