"""Runs an exported artifact: images in, predictions and evidence maps out.

Light by rule: NumPy, OpenCV and one backend. Never imports torch, onnx,
`sigcam.train` or `sigcam.export`, so that it can be installed on an edge device.
The names below are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigcam.core.artifact import read_spec
    from sigcam.core.spec import Spec
    from sigcam.runtime.explanation import Box, Explanation
    from sigcam.runtime.session import Session, load

__all__ = ["Box", "Explanation", "Session", "Spec", "load", "read_spec"]

_HOMES = {
    "Box": "result",
    "Explanation": "result",
    "Session": "session",
    "Spec": "spec",
    "load": "session",
    "read_spec": "artifact",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
