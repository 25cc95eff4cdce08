"""The paper's Figure 1 made real: shifts that no probability notices.

Softmax is blind to adding one and the same vector v to the weights of every class: all
logits grow by v . p (p the pooled features), and their differences stay. The class
activation map isn't blind to it: sum_n (w_n + v_n) F_n. Beyond Softmax, Figure 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from sigcam.classifier.dual_branch import DualBranch


@dataclass(frozen=True)
class Shift:
    """A vector that is added to the softmax weights of every class.

    Attributes:
        name: for file names.
        text: what it is, in words.
        kind: "even": the same number for each feature; "random": a normal random number
            for each feature, always the same ones.
        deviations: the number, or the random numbers' standard deviation, in standard
            deviations of the weights themselves.
    """

    name: str
    text: str
    kind: Literal["even", "random"]
    deviations: float

    def vector(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns the vector v [N] for weights [C, N]."""
        scale = self.deviations * weight.std()
        if self.kind == "even":
            return scale.expand(weight.shape[1]).clone()
        generator = torch.Generator().manual_seed(0)
        return scale * torch.randn(weight.shape[1], generator=generator)


# The paper's two distortions: evidence from everywhere, and evidence that vanishes.
SHIFTS = (
    Shift("random", "a random number added to each feature's weight", "random", 8.0),
    Shift("down", "one number subtracted from all weights", "even", -1.0),
)


def shift_softmax(dual: DualBranch, shift: Shift) -> DualBranch:
    """Returns a copy of `dual` with a shifted softmax branch.

    Args:
        dual: its softmax branch must be global average pooling and one linear layer.
        shift: what to add, to the weights of all classes alike.

    Returns:
        A model with the same probabilities (up to rounding) and the same sigmoid branch.

    Example:
        >>> from torch import nn
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
        >>> moved, image = shift_softmax(dual, SHIFTS[0]), torch.ones(1, 3, 8, 8)
        >>> one, other = dual(image).logits, moved(image).logits
        >>> torch.equal(one, other), torch.allclose(one.softmax(1), other.softmax(1), atol=1e-5)
        (False, True)
    """
    weight, _ = dual.softmax_head.linear_weights()
    vector = shift.vector(weight)
    shifted = copy.deepcopy(dual)
    moved = {
        name: tensor + vector.reshape(1, -1, *[1] * (tensor.dim() - 2))
        if tensor.dim() > 1
        else tensor
        for name, tensor in shifted.softmax_head.named_tensors().items()
    }
    shifted.softmax_head.load_tensors(moved)
    return shifted
