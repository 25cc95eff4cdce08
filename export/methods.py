"""The CAM methods by name. A new method is one file and one line here.

The tests run over `METHODS`, so a new entry inherits the whole parity suite.
"""

from __future__ import annotations

import abc
import pkgutil
from dataclasses import dataclass

from torch import Tensor, nn

from sigcam.runtime.errors import UsageError
from sigcam.runtime.spec import Branch
from sigcam.train.dual_branch import DualBranch

METHODS: dict[str, str] = {
    "cam": "sigcam.export.cam:Cam",
}


@dataclass(frozen=True)
class MethodOptions:
    """What a method is built for.

    Attributes:
        branch: which branch the CAM weights come from.
        has_sigmoid: whether there is a sigmoid branch to take the evidence from.
        sigmoid_logits: whether all logits of the sigmoid branch are wanted.
    """

    branch: Branch
    has_sigmoid: bool
    sigmoid_logits: bool


@dataclass(frozen=True)
class Explained:
    """What a method says about the chosen classes.

    Attributes:
        weights: float32 [B, K, N], signed CAM weights.
        evidence_logits: float32 [B, K]; None without a sigmoid branch.
        sigmoid_logits: float32 [B, C]; None unless wanted.
    """

    weights: Tensor
    evidence_logits: Tensor | None
    sigmoid_logits: Tensor | None


class Method(nn.Module, abc.ABC):
    """A CAM method as part of the exported graph: forward operators only."""

    @abc.abstractmethod
    def __init__(self, dual: DualBranch, options: MethodOptions) -> None:
        """Takes what it needs of `dual`, without changing it.

        Raises:
            ExportError: the method can't express this head.
        """
        super().__init__()

    @abc.abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """What both heads are computed from, once per picture."""

    @abc.abstractmethod
    def logits(self, pooled: Tensor) -> Tensor:
        """Logits [B, C] of the softmax branch."""

    @abc.abstractmethod
    def explain(self, features: Tensor, pooled: Tensor, class_ids: Tensor) -> Explained:
        """CAM weights and evidence of the classes `class_ids` [B, K], ids 0 to C - 1."""

    @staticmethod
    @abc.abstractmethod
    def reference_weights(
        dual: DualBranch, branch: Branch, features: Tensor, class_ids: Tensor
    ) -> Tensor:
        """CAM weights [B, K, N] by the definition, to compare the graph with.

        Args:
            dual: in float64.
            branch: which branch the weights come from.
            features: float64 [B, N, h, w].
            class_ids: int64 [B, K].
        """


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: no method of that name.
    """
    if name not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    found: type[Method] = pkgutil.resolve_name(METHODS[name])
    return found
