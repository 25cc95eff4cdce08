"""Refuses what a model doesn't compute for each image alone, and what depends on their number.

Images in a batch would influence each other, or the graph would hold for one batch size only.
"""

from __future__ import annotations

import torch
from torch import fx

from sigcam.classifier.graph import ancestors
from sigcam.classifier.layer_names import describe, name_of
from sigcam.classifier.layout import operator_name
from sigcam.classifier.trace import Traced
from sigcam.classifier.trace_failure import KEEP_A_TENSOR
from sigcam.core.errors import ModelError

_NUMBERS = {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}


def check_per_image(traced: Traced) -> None:
    """Refuses a classifier that computes something for the whole batch, or by its size.

    Args:
        traced: the classifier; what doesn't lead to its logits doesn't count.

    Raises:
        ModelError: a convolution has a kernel for each image, or one Python number is taken out of
            the values of all images.

    Example:
        >>> from torch import nn
        >>> from sigcam.classifier.trace import trace
        >>> class Scaled(nn.Conv2d):
        ...     def forward(self, x):
        ...         return super().forward(x).mean((2, 3)) * x.max().item()
        >>> traced = trace(Scaled(3, 4, 3), torch.zeros(1, 3, 8, 8))
        >>> try:
        ...     check_per_image(traced)
        ... except ModelError as error:
        ...     print(str(error).partition(" of a batch")[0].partition(" is ")[2])
        one Python number for all images
    """
    on_path = ancestors(traced.logits)
    for node in traced.graph.nodes:
        if node in on_path:
            _check_kernels(node)
            _check_numbers(traced, node)


def _check_kernels(node: fx.Node) -> None:
    """Refuses convolutions with as many groups as the batch has images.

    ONNX knows groups by a fixed number only.
    """
    if "conv" in operator_name(node) and any(
        isinstance(n, fx.Node) and isinstance(n.meta.get("val"), torch.SymInt) for n in node.args
    ):
        raise ModelError(
            f"{describe(node)} convolves each image with a kernel of its own (as CondConv "
            f"does), so its groups depend on the batch size, which ONNX can't express; use a "
            f"network without such layers"
        )


def _check_numbers(traced: Traced, node: fx.Node) -> None:
    """Refuses numbers that are taken out of the images' values."""
    if node.target in _NUMBERS and traced.image in ancestors(node):
        raise ModelError(
            f"{name_of(traced.graph, node)} is one Python number for all images of a batch, taken "
            f"from their values (.item(), float(x), .tolist()), so that they would influence each "
            f"other; {KEEP_A_TENSOR}"
        )
