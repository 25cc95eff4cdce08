"""Runs a classifier up to the neck of its heads in ONNX Runtime, for features to train on.

The graph is exported as an artifact's is: from raw pixels, and of a classifier that was read from
an ONNX file with the file's own front.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.classifier.onnx.kept import KeptFront, NotKeptError
from sigcam.core.errors import BackendError, ExportError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.export.kept_front import KeptModule, kept_for
from sigcam.export.modules import Normalise, example_image
from sigcam.export.onnx_model import (
    DEFAULT_OPSET,
    GraphSignature,
    needs_external_data,
    to_onnx,
)

_OUTPUT = "neck"


class FeatureGraph(nn.Module):
    """Computes what a head's trained part sees: raw pixels to the neck's output."""

    def __init__(self, dual: DualBranch, head: Head, preprocessing: Preprocessing) -> None:
        """Takes the parts of a model.

        Args:
            dual: the model, on the CPU; its modules are shared, not changed.
            head: the head whose neck it is.
            preprocessing: whose mean and deviation pixels are normalised with.
        """
        super().__init__()
        self._preprocessing = preprocessing.raw
        self.kept = _kept(dual)
        last = self.kept is not None and self.kept.takes.nhwc
        self.normalise = Normalise(self._preprocessing, channels_last=last)
        self.features = dual.features if self.kept is None else KeptModule(self.kept)
        self.neck = head.neck

    @property
    def signature(self) -> GraphSignature:
        """Returns the graph's input and output."""
        image = {"image": example_image(self._preprocessing)}
        return GraphSignature(image, [_OUTPUT], {"image": {0: "batch"}}, self.kept)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the neck's output for raw pixels [B, H, W, n], float32 [B, ...]."""
        made: Tensor = self.neck(self.features(self.normalise(image)))
        return made


def _kept(dual: DualBranch) -> KeptFront | None:
    if dual.file_sha256 is None:
        return None
    try:
        return kept_for(dual.features, dual.softmax_head.traced, DEFAULT_OPSET)[0]
    except NotKeptError:  # what was read of the file does as well
        return None


class FeatureSession:
    """A session of ONNX Runtime from raw pixels to the neck's output.

    Example:
        session = FeatureSession(dual, dual.sigmoid_head, preprocessing)
        session(pixels).shape  # (64, 1280)
    """

    def __init__(self, dual: DualBranch, head: Head, preprocessing: Preprocessing) -> None:
        """Exports the graph and opens it, on as many threads as PyTorch uses.

        Args:
            dual: the model, float32, on the CPU; it isn't changed.
            head: the head whose neck it is.
            preprocessing: of the network's input.

        Raises:
            ExportError: the graph can't be exported, or its weights are over 2 GiB.
            BackendError: ONNX Runtime refuses the graph.
        """
        graph = FeatureGraph(dual, head, preprocessing)
        if needs_external_data(graph, graph.kept):
            raise ExportError("the weights are over 2 GiB, which a session takes from files alone")
        training = [part for part in graph.modules() if part.training]
        try:
            content = to_onnx(graph, graph.signature).SerializeToString()
        finally:
            for part in training:  # the parts are the caller's
                part.training = True
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # Decoding threads need the cores while this waits for them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's own errors have no common base
            raise BackendError(f"ONNX Runtime refuses the features' graph: {exc}") from exc

    def __call__(self, pixels: Array) -> Array:
        """Computes the neck's output.

        Args:
            pixels: raw, [B, H, W, n].

        Returns:
            float32 [B, ...].

        Raises:
            BackendError: ONNX Runtime fails, for want of memory perhaps.
        """
        try:
            found: Array = self._session.run([_OUTPUT], {"image": np.ascontiguousarray(pixels)})[0]
        except Exception as exc:  # ONNX Runtime's own errors have no common base
            raise BackendError(f"ONNX Runtime fails on {len(pixels)} views: {exc}") from exc
        return found
