"""The files that are tried, by the environment that makes them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.coverage.onnx_sources.makers import common

OWN = ("torch_files", "derived_files", "shipped_files")
"""The modules of makers that run in sigcam's own environment."""

OTHERS = {
    "keras_files": "tensorflow-cpu tf2onnx",
    "paddle_files": "paddlepaddle paddle2onnx packaging",
    "mxnet_files": "mxnet==1.9.1 numpy==1.23.5 onnx==1.14.1",
    "optimum_files": "optimum-onnx",
}
"""Those that need another, and what is installed in it."""


@dataclass(frozen=True)
class Entry:
    """A file to try.

    Attributes:
        name: of its row and folder.
        module: the module of makers that writes it.
    """

    name: str
    module: str

    @property
    def made_by(self) -> str:
        """The module's import name."""
        return f"{common.__package__}.{self.module}"


def entries() -> list[Entry]:
    """Returns all files, in the order of the table."""
    found = []
    for module in (*OWN, *OTHERS):
        files = importlib.import_module(f"{common.__package__}.{module}").FILES
        found += [Entry(name, module) for name in files]
    return found
