"""sigcam: the prediction and its class evidence map from one forward pass.

    import sigcam

    with sigcam.load("model.onnx") as session:
        for explanation in session.explain("cat.jpg"):
            print(explanation.label, explanation.probability, explanation.evidence)
            explanation.save("cat-map.png")

The public names are imported when they are first used: `import sigcam` itself imports
neither PyTorch, ONNX nor a backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.classifier.branch_file import load_branch as load_branch
    from sigcam.classifier.branch_file import save_branch as save_branch
    from sigcam.classifier.dual_branch import DualBranch as DualBranch
    from sigcam.classifier.zoo import load_model as load_model
    from sigcam.core.artifact import read_spec as read_spec
    from sigcam.core.errors import SigcamError as SigcamError
    from sigcam.core.spec import ClassSelection as ClassSelection
    from sigcam.core.spec import Preprocessing as Preprocessing
    from sigcam.core.spec import Spec as Spec
    from sigcam.export import export_artifact as export_artifact
    from sigcam.export import export_classifier as export_classifier
    from sigcam.runtime.explanation import Box as Box
    from sigcam.runtime.explanation import Explanation as Explanation
    from sigcam.runtime.session import Session as Session
    from sigcam.runtime.session import load as load
    from sigcam.train.loop import TrainSettings as TrainSettings
    from sigcam.train.loop import train_branch as train_branch

_HOME = {
    "Box": "sigcam.runtime.explanation",
    "ClassSelection": "sigcam.core.spec",
    "DualBranch": "sigcam.classifier.dual_branch",
    "Explanation": "sigcam.runtime.explanation",
    "Preprocessing": "sigcam.core.spec",
    "Session": "sigcam.runtime.session",
    "SigcamError": "sigcam.core.errors",
    "Spec": "sigcam.core.spec",
    "TrainSettings": "sigcam.train.loop",
    "export_artifact": "sigcam.export",
    "export_classifier": "sigcam.export",
    "load": "sigcam.runtime.session",
    "load_branch": "sigcam.classifier.branch_file",
    "load_model": "sigcam.classifier.zoo",
    "read_spec": "sigcam.core.artifact",
    "save_branch": "sigcam.classifier.branch_file",
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
