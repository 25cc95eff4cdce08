"""sigcam: the prediction and its class evidence map from one forward pass.

    import sigcam

    with sigcam.load("model.onnx") as session:
        for explanation in session.explain("cat.jpg"):
            print(explanation.label, explanation.probability, explanation.evidence)
            explanation.save("cat-heatmap.png")

The whole path, from a classifier's name to an engine, is in docs/api.md. The public names are
imported when they are first used: `import sigcam` itself imports neither NumPy, PyTorch, ONNX
nor a backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sigcam.core.versions import __version__ as __version__

if TYPE_CHECKING:
    from sigcam.classifier.build import build_classifier as build_classifier
    from sigcam.convert.quantize.run import QuantizeOptions as QuantizeOptions
    from sigcam.convert.quantize.run import quantize_artifact as quantize_artifact
    from sigcam.convert.tensorrt.build import build_engine as build_engine
    from sigcam.core.artifact import read_spec as read_spec
    from sigcam.core.errors import SigcamError as SigcamError
    from sigcam.data.open import open_dataset as open_dataset
    from sigcam.evaluate.run import evaluate_artifacts as evaluate_artifacts
    from sigcam.export.export import export_artifact as export_artifact
    from sigcam.export.options import ExportOptions as ExportOptions
    from sigcam.images.frames import Frame as Frame
    from sigcam.images.overlay import OverlayOptions as OverlayOptions
    from sigcam.runtime.explanation import Explanation as Explanation
    from sigcam.runtime.session import Session as Session
    from sigcam.runtime.session import load as load
    from sigcam.runtime.several import shared_cam_range as shared_cam_range
    from sigcam.runtime.several import stack_heatmaps as stack_heatmaps
    from sigcam.train.branch import train_branch as train_branch
    from sigcam.train.settings import TrainSettings as TrainSettings

_MODULES = {
    "ExportOptions": "sigcam.export.options",
    "Explanation": "sigcam.runtime.explanation",
    "Frame": "sigcam.images.frames",
    "OverlayOptions": "sigcam.images.overlay",
    "QuantizeOptions": "sigcam.convert.quantize.run",
    "Session": "sigcam.runtime.session",
    "SigcamError": "sigcam.core.errors",
    "TrainSettings": "sigcam.train.settings",
    "build_classifier": "sigcam.classifier.build",
    "build_engine": "sigcam.convert.tensorrt.build",
    "evaluate_artifacts": "sigcam.evaluate.run",
    "export_artifact": "sigcam.export.export",
    "load": "sigcam.runtime.session",
    "open_dataset": "sigcam.data.open",
    "quantize_artifact": "sigcam.convert.quantize.run",
    "read_spec": "sigcam.core.artifact",
    "shared_cam_range": "sigcam.runtime.several",
    "stack_heatmaps": "sigcam.runtime.several",
    "train_branch": "sigcam.train.branch",
}
"""The public names and the modules that they stand in."""

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'sigcam' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
