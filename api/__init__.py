"""sigcam: the prediction and its class evidence map from one forward pass.

    import sigcam

    with sigcam.load("model.onnx") as session:
        for explanation in session.explain("cat.jpg"):
            print(explanation.label, explanation.probability, explanation.evidence)
            explanation.save("cat-map.png")

The public names are imported when they are first used: `import sigcam` itself imports
neither PyTorch, ONNX nor an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.export import export_artifact as export_artifact
    from sigcam.export import export_classifier as export_classifier
    from sigcam.runtime.artifact import read_spec as read_spec
    from sigcam.runtime.errors import SigcamError as SigcamError
    from sigcam.runtime.result import Box as Box
    from sigcam.runtime.result import Explanation as Explanation
    from sigcam.runtime.session import Session as Session
    from sigcam.runtime.session import load as load
    from sigcam.runtime.spec import ClassSelection as ClassSelection
    from sigcam.runtime.spec import Geometry as Geometry
    from sigcam.runtime.spec import Spec as Spec
    from sigcam.train.branch_file import load_branch as load_branch
    from sigcam.train.branch_file import save_branch as save_branch
    from sigcam.train.dual_branch import DualBranch as DualBranch
    from sigcam.train.loop import TrainSettings as TrainSettings
    from sigcam.train.loop import train_branch as train_branch
    from sigcam.train.models import load_model as load_model

_HOME = {
    "Box": "sigcam.runtime.result",
    "ClassSelection": "sigcam.runtime.spec",
    "DualBranch": "sigcam.train.dual_branch",
    "Explanation": "sigcam.runtime.result",
    "Geometry": "sigcam.runtime.spec",
    "Session": "sigcam.runtime.session",
    "SigcamError": "sigcam.runtime.errors",
    "Spec": "sigcam.runtime.spec",
    "TrainSettings": "sigcam.train.loop",
    "export_artifact": "sigcam.export",
    "export_classifier": "sigcam.export",
    "load": "sigcam.runtime.session",
    "load_branch": "sigcam.train.branch_file",
    "load_model": "sigcam.train.models",
    "read_spec": "sigcam.runtime.artifact",
    "save_branch": "sigcam.train.branch_file",
    "train_branch": "sigcam.train.loop",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("sigcam")
    if name not in _HOME:
        raise AttributeError(f"module 'sigcam' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
