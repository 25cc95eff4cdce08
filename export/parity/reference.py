"""Every output by its definition, in float64 with PyTorch's autograd: what parity means.

Gradients are taken through the whole model by autograd, not by the traced way back. What it
shares with the exported graph is the model, `METHODS`, `combine` and `fuse`; for these the
tests have an oracle of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.target_layers import Probe
from sigcam.core.errors import ParityError
from sigcam.export.cam import combine, fuse
from sigcam.export.methods import Gradient, method_of
from sigcam.export.options import GraphOptions


class Reference:
    """The outputs for some images.

    Attributes:
        logits: [B, C] of the softmax branch.
    """

    def __init__(self, dual: DualBranch, images: Tensor, options: GraphOptions) -> None:
        """Runs the model forward.

        Args:
            dual: in float64.
            images: float64 [B, 3, H, W], normalised.
            options: of the graph.
        """
        self._dual, self._options = dual, options
        self._made: dict[bytes, dict[str, Tensor]] = {}
        probe = Probe(dual.features, {target.node for target in dual.targets})
        with torch.enable_grad():
            value = probe.run(images)
            self._logits = dual.softmax_head(value)
            self._sigmoid_logits = dual.sigmoid_head(value)
        self._values = [probe.values[target.node] for target in dual.targets]

    @property
    def logits(self) -> Tensor:
        """[B, C] of the softmax branch."""
        logits: Tensor = self._logits.detach()
        return logits

    def outputs(self, class_ids: Tensor) -> dict[str, Tensor]:
        """Outputs by name, for the classes that the graph chose; made once for each choice.

        Beside them "cam_size": the largest sum_n |w_n F_n|, which the rounding of a CAM
        goes by, as positive and negative terms may cancel; and "all_scores": the logits of
        all classes in the branch that the weights come from.

        Args:
            class_ids: int64 [B, K].

        Raises:
            ParityError: classes that don't exist.
        """
        key = class_ids.numpy().tobytes()
        if key not in self._made:
            self._made[key] = self._outputs(class_ids)
        return self._made[key]

    def _outputs(self, class_ids: Tensor) -> dict[str, Tensor]:
        B, C = self._logits.shape
        if (
            class_ids.ndim != 2
            or len(class_ids) != B
            or not bool(((class_ids >= 0) & (class_ids < C)).all())
        ):
            raise ParityError(f"the graph chose classes that don't exist: {class_ids.tolist()}")
        softmax, sigmoid = self._logits.detach(), self._sigmoid_logits.detach()
        branch = sigmoid if self._options.branch == "sigmoid" else softmax
        features = [
            target.layout.to_grid(value.detach())
            for target, value in zip(self._dual.targets, self._values, strict=True)
        ]
        weights = self._weights(class_ids, features)
        sizes = [combine(w.abs(), F.abs(), False) for w, F in zip(weights, features, strict=True)]
        nwc = bool(self._options.nwc)
        cams = [combine(w, F, nwc) for w, F in zip(weights, features, strict=True)]
        return {
            "logits": softmax,
            "class_ids_out": class_ids,
            "scores": branch.gather(1, class_ids),
            "all_scores": branch,
            "evidence_logits": sigmoid.gather(1, class_ids),
            "sigmoid_logits": sigmoid,
            "features": features[0],
            "cam_weights": weights[0],
            # Several CAMs are scaled to [0, 1] before their mean is taken.
            "cam_size": sizes[0].max() if len(cams) == 1 else torch.ones(()),
            "cams": cams[0] if len(cams) == 1 else fuse(cams),
        }

    def _weights(self, class_ids: Tensor, features: list[Tensor]) -> list[Tensor]:
        method = method_of(self._options.method)
        if method.need == "rows":
            head = self._dual.softmax_head
            head = self._dual.sigmoid_head if self._options.branch == "sigmoid" else head
            return [head.linear_weights()[0][class_ids]]
        found = []
        for column in range(class_ids.shape[1]):
            ids = class_ids[:, column : column + 1]
            gradients = torch.autograd.grad(self._score(ids).sum(), self._values, retain_graph=True)
            found.append(
                [
                    target.layout.to_grid(g).unsqueeze(1)
                    for target, g in zip(self._dual.targets, gradients, strict=True)
                ]
            )
        result = []
        for F, columns in zip(features, zip(*found, strict=True), strict=True):
            value = torch.cat(columns, 1)
            result.append(method.weights(F, Gradient(value, F.shape[2] * F.shape[3])))
        return result

    def _score(self, ids: Tensor) -> Tensor:
        """The scores [B, 1] whose gradients count."""
        options = self._options
        logits: Tensor = self._sigmoid_logits if options.branch == "sigmoid" else self._logits
        score = logits.gather(1, ids)
        if not method_of(options.method).contrasts:
            return score
        distance = (self.logits - self.logits.gather(1, ids)).abs()
        distance = distance.scatter(1, ids, torch.inf)
        near = distance.argsort(1)[:, : int(options.method_options["similar"])]
        return score - options.method_options["gamma"] * logits.gather(1, near).mean(1, True)
