"""The paper's Figure 1 made real: a shift that no probability notices.

Softmax is blind to adding one and the same vector v to the weights of every class: all
logits grow by v . p (p the pooled features), and their differences stay. The class
activation map isn't blind to it: sum_n (w_n + v_n) F_n. Beyond Softmax, section 3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.train.dual_branch import DualBranch


def shift_softmax(dual: DualBranch, deviations: float) -> DualBranch:
    """A copy of `dual` with a constant added to every weight of the softmax branch.

    Args:
        dual: its softmax branch must be global average pooling and one linear layer.
        deviations: the constant, in standard deviations of that layer's weights.

    Returns:
        A model with the same probabilities (up to rounding) and the same sigmoid branch.
    """
    weight, _ = dual.softmax_head.linear_weights()
    delta = deviations * float(weight.std())
    shifted = copy.deepcopy(dual)
    tensors = shifted.softmax_head.named_tensors()
    moved = {
        name: tensor + delta if tensor.dim() > 1 else tensor for name, tensor in tensors.items()
    }
    shifted.softmax_head.load_tensors(moved)
    return shifted
