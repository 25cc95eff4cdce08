"""Puts a head into the form that the exported graph needs: up to z, then a linear last layer.

Most classifiers end in a linear layer. Its rows are all that a chosen class needs: the
class's logit is its row times z, and the row is the gradient of the logit with respect to
z. Reading K rows costs next to nothing; reading the whole second matrix would cost 3 to
4% of a small network's run.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from sigcam.classifier.graph import attribute, extract, module_of, tensor_of
from sigcam.classifier.head import Head
from sigcam.classifier.last_layer import LastLayer, last_layer
from sigcam.classifier.layout import Layout
from sigcam.core.errors import ModelError


class GlobalAveragePool(nn.Module):
    """Averages the value of the branch layer over its positions."""

    def __init__(self, layout: Layout) -> None:
        """Keeps the layout.

        Args:
            layout: where the grid is in the value.
        """
        super().__init__()
        self.layout = layout

    def forward(self, value: Tensor) -> Tensor:
        """Returns the mean of each channel, [B, N]."""
        # The pooling's gradient for channels that lie last is written into memory by strides,
        # which ONNX hasn't; a mean's isn't.
        if self.layout.kind == "tokens":
            return value[:, self.layout.prefix :].mean(1)
        if self.layout.kind == "nhwc":
            return value.mean((1, 2))
        return functional.adaptive_avg_pool2d(value, 1).flatten(1)


class ScoreHead(nn.Module):
    """Computes the logits of all classes or of a few, from z [B, D].

    Attributes:
        num_classes: C.
        trunk: the branch layer's value to z.
        pooled: whether the head is global average pooling and one linear layer, so that
            the gradient of a logit is its row divided by the number of positions.
        weight: the last layer's matrix [C, D], [-W, W] where the network has one logit; None
            where the head doesn't end in a linear layer. Then z are the logits themselves.
        bias: the last layer's bias [C], zeros where it has none; None without `weight`.
        mean_row: in a centred head, what is taken off every row, [D]; None in others.
        mean_bias: in a centred head, what is taken off every bias, [1]; None in others.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean_row: Tensor | None
    mean_bias: Tensor | None

    def __init__(self, head: Head, layout: Layout | None, num_classes: int) -> None:
        """Takes the head apart and shares its tensors.

        Args:
            head: a branch's head; it isn't changed.
            layout: where the grid is in the branch layer's value; None where it has none.
            num_classes: C.
        """
        super().__init__()
        self.num_classes = num_classes
        self.weight = self.bias = self.mean_row = self.mean_bias = None
        self._is_centred = False
        try:
            weight, bias = head.linear_weights()
        except ModelError:
            layout = None
        if layout is None:
            self.pooled = False
            self.trunk, last = _before_last_layer(head)
            if last is not None:
                tensors = head.named_tensors()
                weight = tensors[last.weight].flatten(1)
                bias = tensors[last.bias] if last.bias else torch.zeros_like(weight[:, 0])
                if last.negated:
                    weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
                self._set_last_layer(weight, bias)
        else:
            self.pooled = True
            self.trunk = GlobalAveragePool(layout)
            self._set_last_layer(weight, bias)

    def centred(self) -> ScoreHead:
        """Returns the head of the centred scores, l_c - mean_j l_j, on this head's tensors.

        A vector that is added to every class's row changes no probability of a softmax, and
        moves every row's CAM. The mean over the classes moves with it, so of all the heads
        that such vectors make of one classifier this is the same one.

        Example:
            >>> from sigcam.classifier.dual_branch import DualBranch
            >>> layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
            >>> dual = DualBranch(nn.Sequential(nn.ReLU(), *layers), input_size=8)
            >>> head = ScoreHead(dual.softmax_head, dual.branch.layout, 2).centred()
            >>> rows = head.rows(torch.tensor([[0, 1]]))
            >>> torch.allclose(rows[:, 0], -rows[:, 1])
            True
        """
        made = copy.copy(self)
        made._parameters = dict(self._parameters)
        made._is_centred = True
        if self.weight is not None and self.bias is not None:
            # In float64: a large common vector leaves rounding errors behind otherwise.
            row, bias = (mean.double().mean(0, keepdim=True) for mean in (self.weight, self.bias))
            made.mean_row = nn.Parameter(row[0].to(self.weight.dtype), requires_grad=False)
            made.mean_bias = nn.Parameter(bias.to(self.bias.dtype), requires_grad=False)
        return made

    def logits(self, z: Tensor) -> Tensor:
        """Returns the logits of all classes, [B, C], for z [B, D]; never centred."""
        return z if self.weight is None else functional.linear(z, self.weight, self.bias)

    def rows(self, class_ids: Tensor) -> Tensor:
        """Returns the gradients of some classes' logits with respect to z.

        Args:
            class_ids: int64 [B, K], ids 0 to C - 1.

        Returns:
            [B, K, D].
        """
        if self.weight is None:
            # By comparison: the gradient of a gather would be a scatter, which TensorRT's
            # parser refuses.
            classes = torch.arange(self.num_classes, device=class_ids.device)
            rows = (class_ids.unsqueeze(-1) == classes).to(torch.get_default_dtype())
            return rows - 1 / self.num_classes if self._is_centred else rows
        # embedding becomes one Gather of rows for ids of any shape.
        rows = functional.embedding(class_ids, self.weight)
        return rows if self.mean_row is None else rows - self.mean_row

    def scores(self, z: Tensor, class_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the logits of some classes.

        Args:
            z: what the trunk gives, [B, D].
            class_ids: int64 [B, K], ids 0 to C - 1.
            rows: what `rows` gives for these classes, if it was called already.

        Returns:
            [B, K].
        """
        if self.weight is None or self.bias is None:
            scores = z.gather(1, class_ids)
            return scores - z.mean(1, keepdim=True) if self._is_centred else scores
        rows = self.rows(class_ids) if rows is None else rows
        # One column, so that rows of it are gathered as those of the matrix are.
        bias = functional.embedding(class_ids, self.bias.unsqueeze(1))
        bias = bias if self.mean_bias is None else bias - self.mean_bias
        return (rows @ z.unsqueeze(2) + bias).squeeze(2)

    def _set_last_layer(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)


def _before_last_layer(head: Head) -> tuple[nn.Module, LastLayer | None]:
    """Returns what comes before the last layer, and that layer.

    It is None where the head doesn't end in a linear layer; then all of the head is returned.
    """
    graph = head.classifier.graph
    start, last = next(iter(graph.nodes)), last_layer(graph)
    if last is None:
        return nn.Sequential(head.neck, head.classifier), None
    hidden_layers = module_of(
        extract(start, last.z, start, attribute, "pooled"),
        tensor_of(head.classifier),
        "Trunk",
        dict(head.classifier.named_children()),
    )
    return nn.Sequential(head.neck, hidden_layers, nn.Flatten(1)), last
