"""Defines the CAM methods in the graph, by name. A new one is one function and one line here.

All of them are a weight for every channel, or for every channel and position, from the
features F and the gradient g = dL/dF of a class's logit L (before sigmoid or softmax):
cam = max(0, sum_n w_n F_n). docs/methods.md has formulas, sources and costs.

The tests run over `METHODS`, so a new entry inherits the whole parity suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sigcam.core.errors import UsageError

GradientNeed = Literal["rows", "mean", "full", "scores", "nothing"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of each chosen class's logit with respect to the features.

    Attributes:
        value: [B, K, N, h, w]; or [B, K, N, 1, 1] where it is the same at every position,
            as behind global average pooling, or where only its mean is wanted.
        positions: the number of positions, h * w.
    """

    value: Tensor
    positions: int

    @property
    def mean(self) -> Tensor:
        """Returns the mean over the positions, [B, K, N]."""
        if self._is_uniform:
            return self.value.flatten(2)
        return self.value.mean((3, 4))

    def sum_of(self, terms: Tensor) -> Tensor:
        """Sums terms over the positions.

        Args:
            terms: one term for each entry of `value`, in its shape; where `value` has one
                entry for all positions, the term counts for each of them.

        Returns:
            [B, K, N].
        """
        if self._is_uniform:
            return terms.flatten(2) * self.positions
        return terms.sum((3, 4))

    @property
    def _is_uniform(self) -> bool:
        return tuple(self.value.shape[3:]) == (1, 1) and self.positions != 1


@dataclass(frozen=True)
class Method:
    """A method in the graph.

    Attributes:
        weights: features [B, N, h, w] and gradient to CAM weights, signed: [B, K, N], or
            [B, K, N, h, w] ([B, K, N, 1, 1] where equal at all positions) for a method
            with weights per position.
        need: "rows": the rows of the linear layer stand in for the gradient; "mean": only
            the mean of the gradient is used; "full": all of it; "scores": no gradient but
            the scores of masked features, of which the CAM is made without weights;
            "nothing": the graph gives the features, and the runtime makes the maps.
        per_position: whether there is a weight for each position.
        contrasts: whether the logit is contrasted with those of similar classes (finercam).
        refines: whether the CAMs of several target layers are multiplied, so that there must be
            several (refinecam); those of the others are averaged.
        options: the numbers that the method can be built with, by name, with their defaults.
    """

    weights: Callable[[Tensor, Gradient], Tensor]
    need: GradientNeed = "full"
    per_position: bool = False
    contrasts: bool = False
    refines: bool = False
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def in_graph(self) -> bool:
        """Returns whether the graph computes the method's CAMs."""
        return self.need != "nothing"

    @property
    def clamps(self) -> bool:
        """Returns whether negative-weight clamping applies to the method.

        It doesn't where there is a weight for each position: layercam rectifies the gradient
        itself ("Beyond Softmax" leaves it as it is), and clamped hirescam would be layercam.
        Nor does it without weights.
        """
        return not self.per_position and self.need != "scores"

    @property
    def gives_weights(self) -> bool:
        """Returns whether features and CAM weights of one target layer make up the CAM."""
        return not self.refines and self.need not in ("scores", "nothing")


def cam_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes CAM's w_n = W[c, n]. Zhou et al. 2016, Section 2.

    The gradient behind global average pooling is W[c, n] / (h w), so with the need "rows"
    the rows W[c] come in place of the gradient.

    Example:
        >>> import torch
        >>> rows = torch.tensor([2.0, -1.0]).view(1, 1, 2, 1, 1)  # of one class, two channels
        >>> cam_weights(torch.zeros(1, 2, 3, 3), Gradient(rows, positions=9)).tolist()
        [[[2.0, -1.0]]]
    """
    del features
    return gradient.value.flatten(2)


def gradcam_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes Grad-CAM's w_n = mean of g_n over the positions. Selvaraju et al. 2017, Eq. 1.

    Example:
        >>> import torch
        >>> g = torch.tensor([[1.0, 3.0], [0.0, -4.0]]).view(1, 1, 2, 1, 2)  # two channels of 1x2
        >>> gradcam_weights(torch.zeros(1, 2, 1, 2), Gradient(g, positions=2)).tolist()
        [[[2.0, -2.0]]]
    """
    del features
    return gradient.mean


def gradcam_plus_plus_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes Grad-CAM++'s w_n = sum of a_n max(0, g_n). Chattopadhay et al. 2018, Eqs. 13, 19.

    a_n = g_n^2 / (2 g_n^2 + sum(F_n) g_n^3 + 1e-6), which is 0 where g_n is. As in their
    code, for a score that is the exponential of L, whose second and third derivatives are
    powers of g.

    Example:
        >>> import torch
        >>> g = torch.tensor([[1.0, 3.0], [0.0, -4.0]]).view(1, 1, 2, 1, 2)  # two channels of 1x2
        >>> gradcam_plus_plus_weights(torch.zeros(1, 2, 1, 2), Gradient(g, positions=2))
        tensor([[[2.0000, 0.0000]]])
    """
    g = gradient.value
    squared = g * g
    total = features.sum((2, 3)).unsqueeze(1)[..., None, None]
    share = squared / (2 * squared + total * squared * g + 1e-6)
    return gradient.sum_of(share * g.relu())


def xgradcam_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes XGrad-CAM's w_n = sum of g_n F_n / (sum(F_n) + 1e-7). Fu et al. 2020, Eq. 8.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[3.0, 1.0]]]])  # one channel of 1x2
        >>> g = torch.tensor([1.0, 5.0]).view(1, 1, 1, 1, 2)
        >>> xgradcam_weights(features, Gradient(g, positions=2))  # (3 * 1 + 1 * 5) / 4
        tensor([[[2.]]])
    """
    total = features.sum((2, 3)).unsqueeze(1) + 1e-7
    if gradient.value.shape[3:] == features.shape[2:]:
        return (gradient.value * features.unsqueeze(1)).sum((3, 4)) / total
    return gradient.value.flatten(2) * (total - 1e-7) / total


def layercam_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes Layer-CAM's w_n = max(0, g_n) at each position. Jiang et al. 2021, Eq. 4.

    Example:
        >>> import torch
        >>> g = torch.tensor([1.0, -5.0]).view(1, 1, 1, 1, 2)  # one channel of 1x2
        >>> layercam_weights(torch.zeros(1, 1, 1, 2), Gradient(g, positions=2)).tolist()
        [[[[[1.0, 0.0]]]]]
    """
    del features
    return gradient.value.relu()


def hirescam_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Computes HiResCAM's w_n = g_n at each position. Draelos and Carin 2020, Section 3.

    Example:
        >>> import torch
        >>> g = torch.tensor([1.0, -5.0]).view(1, 1, 1, 1, 2)  # one channel of 1x2
        >>> hirescam_weights(torch.zeros(1, 1, 1, 2), Gradient(g, positions=2)).tolist()
        [[[[[1.0, -5.0]]]]]
    """
    del features
    return gradient.value


def _no_weights(features: Tensor, gradient: Gradient) -> Tensor:
    """Refuses: the method's CAM isn't made of weights.

    Raises:
        UsageError: always.
    """
    del features, gradient
    raise UsageError("the method has no CAM weights; its CAM is made of scores or features")


METHODS: dict[str, Method] = {
    "cam": Method(cam_weights, need="rows"),
    "gradcam": Method(gradcam_weights, need="mean"),
    "gradcam++": Method(gradcam_plus_plus_weights),
    "xgradcam": Method(xgradcam_weights),
    "layercam": Method(layercam_weights, per_position=True),
    "hirescam": Method(hirescam_weights, per_position=True),
    # Grad-CAM of a logit that similar classes' logits were subtracted from.
    "finercam": Method(
        gradcam_weights, need="mean", contrasts=True, options={"gamma": 0.6, "similar": 3}
    ),
    # The product of Grad-CAM++'s CAMs at several target layers.
    "refinecam": Method(gradcam_plus_plus_weights, refines=True),
    # The scores of features of which one position alone is seen.
    "reciprocam": Method(_no_weights, need="scores"),
}


RUN_TIME_METHODS: dict[str, Method] = {
    name: Method(_no_weights, need="nothing") for name in ("scorecam", "eigencam")
}
"""Methods that need no gradient: for heads whose backward pass has no translation."""


def method_of(name: str) -> Method:
    """Returns the method of a name.

    Args:
        name: a name in `METHODS` or `RUN_TIME_METHODS`.

    Raises:
        UsageError: there is no such method.

    Example:
        >>> method_of("layercam").clamps
        False
    """
    known = {**METHODS, **RUN_TIME_METHODS}
    if name not in known:
        raise UsageError(f"method must be one of {', '.join(known)}, got {name!r}")
    return known[name]
