"""Writes the artifact: one forward-only ONNX graph with its spec and parity report."""

from sigcam.export.export import export_artifact, export_classifier
from sigcam.export.methods import METHODS
from sigcam.export.options import ExportOptions

__all__ = ["METHODS", "ExportOptions", "export_artifact", "export_classifier"]
