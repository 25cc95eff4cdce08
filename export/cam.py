"""cam: the rows of the linear layer after global average pooling.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, with
the rows taken from either branch ("Beyond Softmax" takes the sigmoid branch's).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sigcam.export.methods import Explained, Method, MethodOptions
from sigcam.runtime.errors import ExportError, ModelError
from sigcam.runtime.spec import Branch
from sigcam.train.dual_branch import DualBranch
from sigcam.train.head import Head


class Cam(Method):
    """CAM weights [B, K, N] = rows of W [C, N]; evidence logits = w . mean(F) + b.

    The evidence logits are computed from the gathered rows: reading all of the second
    matrix would cost 3 to 4% of a small network's run, the rows cost a tenth of that.
    """

    def __init__(self, dual: DualBranch, options: MethodOptions) -> None:
        """Shares the matrices of `dual`.

        Raises:
            ExportError: a head isn't global average pooling and one linear layer.
        """
        super().__init__(dual, options)
        self.branch = options.branch
        self.has_sigmoid = options.has_sigmoid
        self.all_logits = options.sigmoid_logits
        self.softmax_weight, self.softmax_bias = map(_constant, _linear(dual.softmax_head))
        if self.has_sigmoid:
            weight, bias = _linear(dual.sigmoid_head)
            self.sigmoid_weight = _constant(weight)
            # One column, so that rows of it are gathered as those of the matrix are.
            self.sigmoid_bias = _constant(bias if self.all_logits else bias.unsqueeze(1))

    def pool(self, features: Tensor) -> Tensor:
        """Mean over the grid: [B, N, h, w] to [B, N]."""
        return functional.adaptive_avg_pool2d(features, 1).flatten(1)

    def logits(self, pooled: Tensor) -> Tensor:
        """Logits [B, C] of the softmax branch."""
        return functional.linear(pooled, self.softmax_weight, self.softmax_bias)

    def explain(self, features: Tensor, pooled: Tensor, class_ids: Tensor) -> Explained:
        """CAM weights and evidence of the classes `class_ids` [B, K]."""
        del features
        # embedding becomes one Gather of rows for ids of any shape.
        rows = None
        if self.branch == "sigmoid":
            rows = functional.embedding(class_ids, self.sigmoid_weight)
        evidence = logits = None
        if self.all_logits:
            logits = functional.linear(pooled, self.sigmoid_weight, self.sigmoid_bias)
            evidence = logits.gather(1, class_ids)
        elif self.has_sigmoid:
            known = rows
            if known is None:
                known = functional.embedding(class_ids, self.sigmoid_weight)
            bias = functional.embedding(class_ids, self.sigmoid_bias)
            evidence = (known @ pooled.unsqueeze(2) + bias).squeeze(2)
        if rows is None:
            rows = functional.embedding(class_ids, self.softmax_weight)
        return Explained(rows, evidence, logits)

    @staticmethod
    def reference_weights(
        dual: DualBranch, branch: Branch, features: Tensor, class_ids: Tensor
    ) -> Tensor:
        """Rows of the branch's matrix."""
        del features
        head = dual.sigmoid_head if branch == "sigmoid" else dual.softmax_head
        return head.linear_weights()[0][class_ids]


def _linear(head: Head) -> tuple[Tensor, Tensor]:
    try:
        return head.linear_weights()
    except ModelError as exc:
        raise ExportError(f"the method cam can't explain this model: {exc}") from exc


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
