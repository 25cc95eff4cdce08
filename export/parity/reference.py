"""Computes every output by its definition, in float64 with PyTorch's autograd.

That is what parity is measured against. Gradients are taken through the whole model by
autograd, not by the traced backward pass. What the definition shares with the exported graph
is the model, `METHODS`, `combine` and `fuse`; for these the tests have an oracle of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.gradients import gradients_of
from sigcam.classifier.graph import ValueRecorder
from sigcam.classifier.layout import Layout
from sigcam.core.errors import ParityError
from sigcam.export.cam import combine, fuse
from sigcam.export.methods import Gradient, method_of
from sigcam.export.options import ExportOptions
from sigcam.export.parity.replay import Replay


class Reference:
    """Computes the outputs for some images, by their definition.

    Attributes:
        model: the model in float64.
        images: the images, float64 [B, 3, H, W], normalised.
        options: what the graph computes.
    """

    def __init__(self, model: DualBranch, images: Tensor, options: ExportOptions) -> None:
        """Runs the model forward.

        Args:
            model: the model in float64.
            images: float64 [B, 3, H, W], normalised.
            options: what the graph computes.
        """
        self.model, self.images, self.options = model, images, options
        self._outputs: dict[bytes, dict[str, Tensor]] = {}
        recorder = ValueRecorder(model.features, {target.node for target in model.targets})
        with torch.enable_grad():
            value = recorder.run(images)
            self._logits = model.softmax_head(value)
            # Without the branch nothing is compared with its logits; others stand there.
            has_sigmoid = options.has_sigmoid
            self._sigmoid_logits = model.sigmoid_head(value) if has_sigmoid else self._logits
        self._values = [recorder.values[target.node] for target in model.targets]

    @property
    def logits(self) -> Tensor:
        """Returns the logits of the softmax branch, [B, C]."""
        logits: Tensor = self._logits.detach()
        return logits

    @property
    def sigmoid_logits(self) -> Tensor:
        """Returns the logits of the sigmoid branch, [B, C]."""
        logits: Tensor = self._sigmoid_logits.detach()
        return logits

    @property
    def _branch_logits(self) -> Tensor:
        """Returns the logits of the branch that the weights come from, [B, C]."""
        logits: Tensor = self._sigmoid_logits if self.options.branch == "sigmoid" else self._logits
        return logits - logits.mean(1, True) if self.options.branch == "centred" else logits

    def outputs(self, class_ids: Tensor) -> dict[str, Tensor]:
        """Returns the outputs for the classes that the graph chose; made once for each choice.

        Args:
            class_ids: the classes, int64 [B, K].

        Returns:
            The graph's outputs by name. Beside them "cam_size": the largest sum_n |w_n F_n|,
            which the rounding of a CAM goes by, as positive and negative terms may cancel;
            and "all_scores": the logits of all classes in the branch that the weights come
            from.

        Raises:
            ParityError: classes that don't exist.
        """
        key = class_ids.numpy().tobytes()
        if key not in self._outputs:
            self._outputs[key] = self._computed(class_ids)
        return self._outputs[key]

    def _computed(self, class_ids: Tensor) -> dict[str, Tensor]:
        B, C = self._logits.shape
        known = bool(((class_ids >= 0) & (class_ids < C)).all())
        if class_ids.ndim != 2 or len(class_ids) != B or not known:
            raise ParityError(f"the graph chose classes that don't exist: {class_ids.tolist()}")
        softmax, sigmoid = self.logits, self.sigmoid_logits
        branch = self._branch_logits.detach()
        features = [
            target.layout.to_grid(value.detach())
            for target, value in zip(self.model.targets, self._values, strict=True)
        ]
        method = method_of(self.options.method)
        outputs: dict[str, Tensor] = {"cam_size": torch.ones(())}
        if method.need == "scores":
            outputs = self._of_masks(class_ids)
        elif method.in_graph:
            outputs = self._of_weights(class_ids, features)
        return outputs | {
            "logits": softmax,
            "class_ids_out": class_ids,
            "scores": branch.gather(1, class_ids),
            "all_scores": branch,
            "evidence_logits": sigmoid.gather(1, class_ids),
            "sigmoid_logits": sigmoid,
            "features": features[0],
        }

    def _of_weights(self, class_ids: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        weights = self._weights(class_ids, features)
        sizes = [combine(w.abs(), F.abs(), False) for w, F in zip(weights, features, strict=True)]
        clamps = self.options.clamps
        signed = self.options.signed
        cams = [combine(w, F, clamps, signed) for w, F in zip(weights, features, strict=True)]
        return {"cam_weights": weights[0], **self._fused(cams, sizes)}

    def _of_masks(self, class_ids: Tensor) -> dict[str, Tensor]:
        """Computes reciprocam, a run of what follows the target layer for each position."""
        cams, sizes = [], []
        for target in self.model.targets:
            replay = Replay(self.model.features, target.node, self.images)
            layout = target.layout
            by_position = [
                self._branch_scores(replay.of(masked)).gather(1, class_ids)
                for masked in _masked(replay.value, layout)
            ]
            scores = torch.stack(by_position, 2).reshape(*class_ids.shape, *layout.shape[1:])
            cams.append(scores - scores.amin((2, 3), keepdim=True))
            sizes.append(scores.abs())
        return self._fused(cams, sizes)

    def _fused(self, cams: list[Tensor], sizes: list[Tensor]) -> dict[str, Tensor]:
        refines = method_of(self.options.method).refines
        return {
            # Several CAMs are scaled to [0, 1] before they are fused.
            "cam_size": sizes[0].max() if len(cams) == 1 else torch.ones(()),
            "cams": cams[0] if len(cams) == 1 else fuse(cams, refines),
        }

    def _branch_scores(self, value: Tensor) -> Tensor:
        """Returns the logits of the branch that the CAM comes from, of the branch layer's value."""
        is_sigmoid = self.options.branch == "sigmoid"
        head = self.model.sigmoid_head if is_sigmoid else self.model.softmax_head
        with torch.no_grad():
            logits: Tensor = head(value)
        return logits - logits.mean(1, True) if self.options.branch == "centred" else logits

    def _weights(self, class_ids: Tensor, features: list[Tensor]) -> list[Tensor]:
        method = method_of(self.options.method)
        if method.need == "rows":
            head = self.model.softmax_head
            head = self.model.sigmoid_head if self.options.branch == "sigmoid" else head
            matrix = head.linear_weights()[0]
            if self.options.branch == "centred":
                matrix = matrix - matrix.mean(0)
            return [matrix[class_ids]]
        by_class = [self._gradients(column.unsqueeze(1)) for column in class_ids.T]
        weights = []
        for F, columns in zip(features, zip(*by_class, strict=True), strict=True):
            gradient = Gradient(torch.stack(columns, 1), F.shape[2] * F.shape[3])
            weights.append(method.weights(F, gradient))
        return weights

    def _gradients(self, ids: Tensor) -> list[Tensor]:
        """Returns the gradient [B, N, h, w] of each target layer, for one class id per image."""
        gradients = gradients_of(self._score(ids).sum(), self._values, retain_graph=True)
        return [
            target.layout.to_grid(gradient)
            for target, gradient in zip(self.model.targets, gradients, strict=True)
        ]

    def _score(self, ids: Tensor) -> Tensor:
        """Returns the scores [B, 1] whose gradients are the classes' for ids [B, 1]."""
        options = self.options
        logits = self._branch_logits
        score = logits.gather(1, ids)
        if not method_of(options.method).contrasts:
            return score
        distance = (self.logits - self.logits.gather(1, ids)).abs()
        distance = distance.scatter(1, ids, torch.inf)
        near = distance.argsort(1)[:, : int(options.method_options["similar"])]
        return score - options.method_options["gamma"] * logits.gather(1, near).mean(1, True)


def _masked(value: Tensor, layout: Layout) -> Iterator[Tensor]:
    """Yields a value of which one position is seen; of tokens those beside it too, but less."""
    _, h, w = layout.shape
    around = {0: 0.5, 1: 0.25} if layout.kind == "tokens" else {0: 1.0}
    for i, j in itertools.product(range(h), range(w)):
        mask = torch.zeros(h, w, dtype=value.dtype)
        for y, x in itertools.product(range(h), range(w)):
            mask[y, x] = around.get(abs(y - i), 0.0) * around.get(abs(x - j), 0.0)
        if layout.kind == "nchw":
            yield value * mask
        elif layout.kind == "nhwc":
            yield value * mask.unsqueeze(2)
        else:
            prefix, grid = value[:, : layout.prefix], value[:, layout.prefix :]
            yield torch.cat([prefix, grid * mask.reshape(h * w, 1)], 1)
