"""What is mutated, a class for each kind of file; the campaign iterates over `TARGETS`."""

from __future__ import annotations

import importlib

from tests.robustness.target import Target

TARGETS = {
    "images": "tests.robustness.targets.images:Images",
    "artifacts": "tests.robustness.targets.artifacts:Artifacts",
    "specs": "tests.robustness.targets.specs:Specs",
    "sidecars": "tests.robustness.targets.sidecars:Sidecars",
    "branches": "tests.robustness.targets.branches:Branches",
    "checkpoints": "tests.robustness.targets.checkpoints:Checkpoints",
    "onnx": "tests.robustness.targets.onnx_files:OnnxFiles",
    "datasets": "tests.robustness.targets.datasets:Datasets",
    "requests": "tests.robustness.targets.requests:ServedRequests",
    "kills": "tests.robustness.targets.kills:Kills",
    "disks": "tests.robustness.targets.disks:Disks",
}
"""Where the class of each kind stands; imported when it is needed, as some need PyTorch."""

COUNTS = {
    "images": 10_000, "artifacts": 2_000, "requests": 20_000, "kills": 200, "disks": 200,
}  # fmt: skip
"""Files of the long campaign; 1,000 where nothing is said."""


def corpus_name(name: str) -> str:
    """Returns the kind whose whole files a kind uses: its own, or those of another."""
    return {"disks": "kills"}.get(name, name)


def make_target(name: str) -> Target:
    """Imports a kind of files by its name, or by its module and class."""
    module, _, kind = TARGETS.get(name, name).partition(":")
    made: Target = getattr(importlib.import_module(module), kind)()
    return made
