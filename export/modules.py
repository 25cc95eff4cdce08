"""Defines the modules that are exported: image in, prediction and evidence map out.

`ArtifactGraph` is the artifact and `HeadGraph` the second file beside it; what both share
is `CamGraph`. `ClassifierGraph` is the network alone, which they are compared with. Each
names its inputs and outputs in a `GraphSignature`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.onnx.kept import KeptFront
from sigcam.classifier.stages import last_of_stages
from sigcam.core.errors import ExportError, UsageError
from sigcam.core.spec import (
    MAX_RANKS,
    ClassSelection,
    Preprocessing,
    SelectionMode,
)
from sigcam.export.cam import WeightGraph, combine, contrast, fuse
from sigcam.export.entry import cut_tail
from sigcam.export.forward import ForwardValues
from sigcam.export.kept_front import KeptModule
from sigcam.export.masked_scores import MaskedScores
from sigcam.export.methods import method_of
from sigcam.export.onnx_model import GraphSignature
from sigcam.export.options import ExportOptions
from sigcam.export.score_head import ScoreHead

_BATCH, _CLASSES = 2, 3
"""Sizes of the examples: a size of 1, or one that equals another, would be taken as fixed."""

_STAGES = 3
"""Most target layers that an error names. Below the third last stage features mean little."""


class Normalise(nn.Module):
    """Turns `image` as the artifact takes it into normalised float32 [B, n, H, W].

    Or [B, H, W, n] with `channels_last`.

    Example:
        >>> normalise = Normalise(Preprocessing(2, 2, mean=(0, 0, 0), std=(1, 1, 1)))
        >>> normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)).shape
        torch.Size([1, 3, 2, 2])
    """

    def __init__(self, preprocessing: Preprocessing, *, channels_last: bool = False) -> None:
        """Prepares the normalisation.

        Args:
            preprocessing: its layout, scale, mean and deviation count; the size doesn't.
            channels_last: whether [B, H, W, n] is returned, as an ONNX file may want it.
        """
        super().__init__()
        self.layout, self.channels_last = preprocessing.layout, channels_last
        shape = (1, 1, 1, -1) if channels_last else (1, -1, 1, 1)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(shape)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(shape)
        # (pixel / scale - mean) / std as one factor and one shift.
        factor = 1 / (preprocessing.scale * std)
        self.factor = nn.Parameter(factor.float(), requires_grad=False)
        # Values that aren't bytes may lie far from 0: the mean comes off before the product,
        # which would round it away.
        shift = -mean / std if preprocessing.takes_bytes else -mean * preprocessing.scale
        self.shift = nn.Parameter(shift.float(), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalises raw pixels [B, H, W, n]; float32 [B, n, H, W] passes unchanged."""
        if self.layout == "float32_nchw":
            return image.permute(0, 2, 3, 1).contiguous() if self.channels_last else image
        # Float before the transpose: TensorRT can't transpose uint8. Contiguous after
        # it, or a flatten in the head meets channels-last strides.
        pixels = image.to(torch.float32)
        if not self.channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        if self.layout == "float32_nhwc":
            return (pixels + self.shift) * self.factor
        return pixels * self.factor + self.shift


class ClassifierGraph(nn.Module):
    """Computes the network alone: `image` to `logits`. The baseline of every benchmark."""

    def __init__(self, dual: DualBranch, preprocessing: Preprocessing) -> None:
        """Takes the backbone and the softmax branch.

        Args:
            dual: the model; its modules are shared, not changed.
            preprocessing: how an image becomes the input.
        """
        super().__init__()
        self._preprocessing = preprocessing
        self.normalise = Normalise(preprocessing)
        self.features = dual.features
        self.head = dual.softmax_head

    @property
    def signature(self) -> GraphSignature:
        """Returns the graph's inputs and outputs."""
        return GraphSignature(
            {"image": example_image(self._preprocessing)}, ["logits"], {"image": {0: "batch"}}
        )

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [B, C]."""
        logits: Tensor = self.head(self.features(self.normalise(image)))
        return logits


class CamGraph(nn.Module):
    """Computes what artifact and head graph share: scores, CAM weights and CAMs.

    Attributes:
        options: what is computed.
        cut: the features in two parts; everything here starts at the entry between them.
        softmax: the softmax branch's head.
        sigmoid: the sigmoid branch's head; None without a trained one.
        weight_graph: gives the CAM weights, or the CAMs of a method without, from the branch that
            the options name.
    """

    def __init__(self, dual: DualBranch, options: ExportOptions) -> None:
        """Takes the parts of a model.

        Args:
            dual: the model; its tensors are shared, not changed.
            options: what is computed; how the file is written doesn't matter here.

        Raises:
            ExportError: the method can't express this head, or the backward pass from the
                logits can't be traced.
            UsageError: options that don't fit the model.
        """
        super().__init__()
        _check_fits(options, dual)
        self.options = options
        self.cut = cut_tail(dual.features, dual.branch, dual.targets)
        layout, C = dual.branch.layout, dual.num_classes
        self.softmax = ScoreHead(dual.softmax_head, layout, C)
        self.sigmoid = ScoreHead(dual.sigmoid_head, layout, C) if options.has_sigmoid else None
        head = self.softmax if options.branch == "softmax" else self.sigmoid
        if options.branch == "centred":
            head = self.softmax.centred()
        assert head is not None  # noqa: S101 (the options were checked)
        method = method_of(options.method)
        kind = MaskedScores if method.need == "scores" else WeightGraph
        self.weight_graph = kind(head, self.cut, dual.branch, dual.targets, method)

    def softmax_logits(self, values: ForwardValues) -> Tensor:
        """Returns the softmax branch's logits of all classes, [B, C].

        Args:
            values: what the forward pass left.
        """
        z = values.z
        if self.options.branch == "sigmoid":
            z = self.softmax.trunk(values.value)
        return self.softmax.logits(z)

    def explain(
        self, values: ForwardValues, class_ids: Tensor, logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes every output that depends on the classes.

        Args:
            values: what the forward pass left.
            class_ids: int64 [B, K], ids 0 to C - 1.
            logits: what `softmax_logits` gives, if it was called already.

        Returns:
            Outputs by name: "scores" and "cams", with a trained sigmoid branch
            "evidence_logits" and perhaps "sigmoid_logits", and for a single target layer
            "cam_weights", if the method has any. Of a method that the runtime computes, no CAMs.
        """
        head = self.weight_graph.head
        rows = head.rows(class_ids)
        scores = head.scores(values.z, class_ids, rows)
        outputs = {"scores": scores}
        if self.sigmoid is not None:
            outputs |= self._sigmoid_outputs(self.sigmoid, values, class_ids, scores)
        if not self.weight_graph.method.in_graph:
            return outputs
        if self.weight_graph.method.contrasts:
            logits = self.softmax_logits(values) if logits is None else logits
            gamma, similar = (self.options.method_options[n] for n in ("gamma", "similar"))
            rows = contrast(head, logits, class_ids, rows, gamma, int(similar))
        return outputs | self._maps(values, rows)

    def _maps(self, values: ForwardValues, rows: Tensor) -> dict[str, Tensor]:
        outputs, clamps, signed = {}, self.options.clamps, self.options.signed
        if isinstance(self.weight_graph, MaskedScores):
            cams = self.weight_graph.cams(values, rows)
        else:
            weights = self.weight_graph.weights(values, rows)
            cams = [
                combine(w, F, clamps, signed) for w, F in zip(weights, values.features, strict=True)
            ]
            if len(weights) == 1:
                outputs["cam_weights"] = self._expanded(weights[0], values.features[0])
        refines = self.weight_graph.method.refines
        outputs["cams"] = cams[0] if len(cams) == 1 else fuse(cams, refines)
        return outputs

    def _sigmoid_outputs(
        self, sigmoid: ScoreHead, values: ForwardValues, class_ids: Tensor, scores: Tensor
    ) -> dict[str, Tensor]:
        is_own = self.options.branch == "sigmoid"
        z = values.z if is_own else sigmoid.trunk(values.value)
        if self.options.sigmoid_logits:
            logits = sigmoid.logits(z)
            return {"evidence_logits": logits.gather(1, class_ids), "sigmoid_logits": logits}
        return {"evidence_logits": scores if is_own else sigmoid.scores(z, class_ids)}

    def _expanded(self, weights: Tensor, features: Tensor) -> Tensor:
        """Gives a method with weights per position its [B, K, N, h, w] in any case."""
        if self.weight_graph.method.per_position and weights.ndim == 3:
            return weights[..., None, None].expand(-1, -1, -1, *features.shape[2:])
        return weights


class ArtifactGraph(nn.Module):
    """Computes the artifact: its outputs are those that `signature` lists.

    Attributes:
        cams: what the head graph has too.
        normalise: the image to the input of `front`.
        front: the part of the features before the entry.
        kept: what of it stands in the graph as an ONNX file has it; None for nothing.
        select: which classes get a map.
    """

    def __init__(
        self, cams: CamGraph, preprocessing: Preprocessing, kept: KeptFront | None = None
    ) -> None:
        """Puts the image and the prediction before a `CamGraph`.

        Args:
            cams: from the entry on; it is shared.
            preprocessing: how an image becomes the input.
            kept: the part of an ONNX file that takes the place of what was read of it.
        """
        super().__init__()
        self._preprocessing = preprocessing
        self.cams, self.kept = cams, kept
        last = kept is not None and kept.takes.nhwc
        self.normalise = Normalise(preprocessing, channels_last=last)
        self.front: nn.Module = cams.cut.front if kept is None else KeptModule(kept)
        self.select = ClassSelector(cams.options.selection, cams.softmax.num_classes)

    @property
    def head_input(self) -> str:
        """Returns the name of the output that the head graph takes."""
        return "features" if self.cams.cut.is_target else "head_input"

    @property
    def output_names(self) -> list[str]:
        """Returns the names of the graph's outputs, in order."""
        options = self.cams.options
        names = ["logits", "class_ids_out"]
        names += ["evidence_logits"] if options.has_sigmoid else []
        names += ["sigmoid_logits"] if options.sigmoid_logits else []
        maps = {"fused": ["cams"], "split": ["features", "cam_weights"], "features": ["features"]}
        names += maps[options.profile]
        single = len(self.cams.weight_graph.layouts) == 1
        if options.features and options.profile == "fused" and single:
            names.append("features")
        if options.features and self.head_input not in names:
            names.append(self.head_input)
        return names

    @property
    def signature(self) -> GraphSignature:
        """Returns the graph's inputs and outputs."""
        inputs = {"image": example_image(self._preprocessing)}
        dynamic = {"image": {0: "batch"}}
        if self.cams.options.selection.mode == "input":
            inputs["class_ids"] = _example_ids()
            dynamic["class_ids"] = {0: "batch", 1: "classes"}
        return GraphSignature(inputs, self.output_names, dynamic, self.kept)

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Computes the outputs in one pass.

        Args:
            image: raw pixels [B, H, W, n] or float32 [B, n, H, W], by the preprocessing.
            class_ids: int64 [B, K], for the class selection "input".
        """
        entry = self.front(self.normalise(image))
        values = self.cams.weight_graph.run(entry)
        logits = self.cams.softmax_logits(values)
        ids = self.select(logits, class_ids)
        outputs = self.cams.explain(values, ids, logits)
        outputs |= {"logits": logits, "class_ids_out": ids, "head_input": entry}
        outputs["features"] = values.features[0]
        return tuple(outputs[name] for name in self.output_names)


class HeadGraph(nn.Module):
    """Computes maps of further classes from what the artifact emitted, without the backbone."""

    def __init__(self, cams: CamGraph, head_input: str) -> None:
        """Takes the part that the artifact has too.

        Args:
            cams: the artifact's own.
            head_input: the name of the artifact's output that this graph takes,
                `ArtifactGraph.head_input`.
        """
        super().__init__()
        self.cams = cams
        self.head_input = head_input

    @property
    def output_names(self) -> list[str]:
        """Returns the names of the graph's outputs, in order."""
        names = ["scores"] + (["evidence_logits"] if self.cams.options.has_sigmoid else [])
        graph = self.cams.weight_graph
        weighs = len(graph.layouts) == 1 and graph.method.gives_weights
        return [*names, *(["cam_weights"] if weighs else []), "cams"]

    @property
    def signature(self) -> GraphSignature:
        """Returns the graph's inputs and outputs."""
        inputs = {
            self.head_input: torch.zeros(_BATCH, *self.cams.cut.shape),
            "class_ids": _example_ids(),
        }
        dynamic = {self.head_input: {0: "batch"}, "class_ids": {0: "batch", 1: "classes"}}
        return GraphSignature(inputs, self.output_names, dynamic)

    def forward(self, entry: Tensor, class_ids: Tensor) -> tuple[Tensor, ...]:
        """Computes the outputs in one pass.

        Args:
            entry: float32 [B, ...], the output of the artifact that `head_input` names.
            class_ids: int64 [B, K], ids 0 to C - 1.
        """
        outputs = self.cams.explain(self.cams.weight_graph.run(entry), class_ids)
        return tuple(outputs[name] for name in self.output_names)


class ClassSelector(nn.Module):
    """Chooses the classes that get a map.

    Example:
        >>> selector = ClassSelector(ClassSelection("topk", 2), num_classes=3)
        >>> selector(torch.tensor([[0.1, 0.9, 0.4]]), None).tolist()
        [[1, 2]]
    """

    def __init__(self, classes: ClassSelection, num_classes: int) -> None:
        """Keeps what was chosen.

        Args:
            classes: which classes get a map.
            num_classes: C.
        """
        super().__init__()
        self.mode: SelectionMode = classes.mode
        self.k = classes.k
        self.ranks = min(num_classes, MAX_RANKS)

    def forward(self, logits: Tensor, class_ids: Tensor | None) -> Tensor:
        """Returns ids int64 [B, K]; for the mode "input", ranks (-1, -2, ...) become ids.

        Args:
            logits: the softmax branch's, [B, C].
            class_ids: int64 [B, K] for the mode "input"; ignored otherwise.
        """
        if self.mode == "top1":
            return logits.argmax(1, keepdim=True)
        if self.mode == "topk":
            return logits.topk(self.k, 1).indices
        if class_ids is None:
            raise ExportError("the class selection 'input' needs class_ids")
        # A fixed number of ranks: backends other than ONNX Runtime want TopK's k constant.
        ranked = logits.topk(self.ranks, 1).indices
        rank = (-class_ids - 1).clamp(0, self.ranks - 1)
        return torch.where(class_ids < 0, ranked.gather(1, rank), class_ids)


def _check_fits(options: ExportOptions, dual: DualBranch) -> None:
    """Refuses options that don't fit a model.

    Raises:
        UsageError: more or fewer target layers, or fewer classes, than the options need.
    """
    C, method = dual.num_classes, method_of(options.method)
    if options.profile == "split" and len(dual.targets) > 1:
        raise UsageError(
            f"the profile split has the features of one target layer, got "
            f"{len(dual.targets)}; name one, or use the profile fused"
        )
    if not method.in_graph and len(dual.targets) > 1:
        raise UsageError(
            f"{options.method} makes its maps of one target layer, got {len(dual.targets)}; name "
            f"one, or use a method of the graph"
        )
    if options.selection.k > C:
        raise UsageError(
            f"maps of the {options.selection.k} most probable classes were asked for, the model "
            f"has {C}; ask for at most that many (top{C})"
        )
    if options.signed and len(dual.targets) > 1:
        raise UsageError(
            f"the CAMs of {len(dual.targets)} target layers are scaled to [0, 1] before they are "
            "fused, which leaves no sign; name one target layer, or leave signed out"
        )
    if options.branch == "centred" and C < 2:
        raise UsageError(
            "the branch centred compares the classes' logits, the model has only one; use the "
            "branch softmax or sigmoid"
        )
    if method.refines and len(dual.targets) < 2:
        raise UsageError(_too_few_layers(options.method, dual))
    if method.contrasts and C < 2:
        raise UsageError(f"{options.method} compares classes, the model has only one")
    if method.contrasts and options.method_options["similar"] > C - 1:
        raise UsageError(
            f"finercam compares with {options.method_options['similar']:g} classes, the "
            f"model has {C}; set similar to at most {C - 1}"
        )


def _too_few_layers(method: str, dual: DualBranch) -> str:
    layers = last_of_stages(dual.features, dual.targets[0])[-_STAGES:]
    such = " ".join(f"--target-layer {layer}" for layer in layers)
    return (
        f"{method} multiplies the CAMs of several target layers, got one, "
        f"{dual.targets[0].layer!r}; name two or more"
        + (f", such as {such}" if len(layers) > 1 else " of different depths")
        + ", or choose another method"
    )


def example_image(preprocessing: Preprocessing) -> Tensor:
    """Returns an example of the input `image`, as the preprocessing's layout has it.

    Example:
        >>> example_image(Preprocessing(8, 10)).shape
        torch.Size([2, 8, 10, 3])
    """
    H, W, n = preprocessing.height, preprocessing.width, preprocessing.channels
    if preprocessing.layout == "float32_nchw":
        return torch.zeros(_BATCH, n, H, W)
    dtype = torch.uint8 if preprocessing.takes_bytes else torch.float32
    return torch.zeros(_BATCH, H, W, n, dtype=dtype)


def _example_ids() -> Tensor:
    return torch.zeros(_BATCH, _CLASSES, dtype=torch.int64)
