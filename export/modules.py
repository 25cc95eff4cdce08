"""The module that is exported: image in, prediction and evidence map out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ExportError, UsageError
from sigcam.core.spec import (
    MAX_RANKS,
    ClassSelection,
    InputLayout,
    Preprocessing,
    SelectionMode,
)
from sigcam.export.cam import (
    Evidence,
    State,
    combine,
    contrast,
    fuse,
)
from sigcam.export.entry import cut_tail
from sigcam.export.methods import method_of
from sigcam.export.options import GraphOptions
from sigcam.export.score_head import ScoreHead


class Normalise(nn.Module):
    """`image` as the artifact takes it to normalised float32 [B, 3, H, W]."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.layout: InputLayout = preprocessing.layout
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(1, 3, 1, 1)
        # (pixel / 255 - mean) / std as one factor and one shift.
        self.factor = nn.Parameter((1 / (255 * std)).float(), requires_grad=False)
        self.shift = nn.Parameter((-mean / std).float(), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3], or float32 [B, 3, H, W] which passes unchanged."""
        if self.layout == "float32_nchw":
            return image
        # Float before the transpose: TensorRT can't transpose uint8. Contiguous after
        # it, or a flatten in the head meets channels-last strides.
        pixels = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        return pixels * self.factor + self.shift


class Classifier(nn.Module):
    """The network alone: `image` to `logits`. The baseline of every benchmark."""

    def __init__(self, dual: DualBranch, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.normalise = Normalise(preprocessing)
        self.features = dual.features
        self.head = dual.softmax_head

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.head(self.features(self.normalise(image)))
        return logits


class CamGraph(nn.Module):
    """What artifact and head graph share: from the entry to scores, weights and CAMs."""

    def __init__(self, dual: DualBranch, options: GraphOptions) -> None:
        """Takes the parts of `dual`, without changing it.

        Raises:
            ExportError: the method can't express this head, or the way back from the
                logits can't be traced.
            UsageError: options that don't fit the model.
        """
        super().__init__()
        self.options = options
        method = method_of(options.method)
        if options.profile == "split" and len(dual.targets) > 1:
            raise UsageError(
                f"the profile split has the features of one target layer, got "
                f"{len(dual.targets)}; name one, or use the profile fused"
            )
        if method.contrasts and dual.num_classes < 2:
            raise UsageError(f"{options.method} compares classes, the model has only one")
        if options.classes.k > dual.num_classes:
            raise UsageError(
                f"maps of the {options.classes.k} most probable classes were asked for, the model "
                f"has {dual.num_classes}; ask for at most that many (top{dual.num_classes})"
            )
        if method.contrasts and options.method_options["similar"] > dual.num_classes - 1:
            raise UsageError(
                f"finercam compares with {options.method_options['similar']:g} classes, the "
                f"model has {dual.num_classes}; set similar to at most {dual.num_classes - 1}"
            )
        self.cut = cut_tail(dual.features, dual.branch, dual.targets)
        layout, C = dual.branch.layout, dual.num_classes
        self.softmax = ScoreHead(dual.softmax_head, layout, C)
        self.sigmoid = ScoreHead(dual.sigmoid_head, layout, C) if options.has_sigmoid else None
        head = self.softmax if options.branch == "softmax" else self.sigmoid
        if head is None:  # the options were checked
            raise UsageError("there is no sigmoid branch")
        self.evidence = Evidence(head, self.cut, dual.branch, dual.targets, method)

    def softmax_logits(self, state: State) -> Tensor:
        """Of all classes, [B, C]."""
        z = state.z
        if self.options.branch != "softmax":
            z = self.softmax.trunk(state.value)
        return self.softmax.logits(z)

    def explain(
        self, state: State, class_ids: Tensor, logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Every output that depends on the classes, by name.

        Args:
            state: of the forward pass.
            class_ids: int64 [B, K], ids 0 to C - 1.
            logits: of the softmax branch, where they are known.
        """
        head = self.evidence.head
        rows = head.rows(class_ids)
        scores = head.scores(state.z, class_ids, rows)
        found = {"scores": scores}
        if self.sigmoid is not None:
            found |= self._sigmoid(state, class_ids, scores)
        if self.evidence.method.contrasts:
            logits = self.softmax_logits(state) if logits is None else logits
            gamma, similar = (self.options.method_options[n] for n in ("gamma", "similar"))
            rows = contrast(head, logits, class_ids, rows, gamma, int(similar))
        weights = self.evidence.weights(state, rows)
        nwc = bool(self.options.nwc)
        cams = [combine(w, F, nwc) for w, F in zip(weights, state.features, strict=True)]
        found["cams"] = cams[0] if len(cams) == 1 else fuse(cams)
        if len(weights) == 1:
            found["cam_weights"] = self._for_positions(weights[0], state.features[0])
        return found

    def _sigmoid(self, state: State, class_ids: Tensor, scores: Tensor) -> dict[str, Tensor]:
        assert self.sigmoid is not None  # noqa: S101 (the caller looked)
        own = self.options.branch == "sigmoid"
        z = state.z if own else self.sigmoid.trunk(state.value)
        if self.options.sigmoid_logits:
            logits = self.sigmoid.logits(z)
            return {"evidence_logits": logits.gather(1, class_ids), "sigmoid_logits": logits}
        return {"evidence_logits": scores if own else self.sigmoid.scores(z, class_ids)}

    def _for_positions(self, weights: Tensor, features: Tensor) -> Tensor:
        if self.evidence.method.per_position and weights.ndim == 3:
            return weights[..., None, None].expand(-1, -1, -1, *features.shape[2:])
        return weights


class ArtifactGraph(nn.Module):
    """The artifact's graph: outputs as `output_names` lists them."""

    def __init__(self, cams: CamGraph, preprocessing: Preprocessing) -> None:
        """Takes a `CamGraph` and puts the image and the prediction before it.

        Raises:
            UsageError: k is above the number of classes.
        """
        super().__init__()
        self.cams = cams
        self.normalise = Normalise(preprocessing)
        self.front = cams.cut.front
        self.select = Select(cams.options.classes, cams.softmax.num_classes)

    @property
    def head_input(self) -> str:
        """Name of the output that the head graph takes."""
        return "features" if self.cams.cut.is_target else "head_input"

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        options = self.cams.options
        names = ["logits", "class_ids_out"]
        names += ["evidence_logits"] if options.has_sigmoid else []
        names += ["sigmoid_logits"] if options.sigmoid_logits else []
        names += ["cams"] if options.profile == "fused" else ["features", "cam_weights"]
        if options.features and options.profile == "fused" and len(self.cams.evidence.layouts) == 1:
            names.append("features")
        if options.features and self.head_input not in names:
            names.append(self.head_input)
        return names

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """One pass.

        Args:
            image: uint8 [B, H, W, 3] RGB or float32 [B, 3, H, W], by the preprocessing.
            class_ids: int64 [B, K], for the class selection "input".
        """
        entry = self.front(self.normalise(image))
        state = self.cams.evidence.run(entry)
        logits = self.cams.softmax_logits(state)
        ids = self.select(logits, class_ids)
        outputs = self.cams.explain(state, ids, logits)
        outputs |= {"logits": logits, "class_ids_out": ids, "head_input": entry}
        outputs["features"] = state.features[0]
        return tuple(outputs[name] for name in self.output_names)


class HeadGraph(nn.Module):
    """Maps of further classes from what the artifact emitted, without the backbone."""

    def __init__(self, cams: CamGraph) -> None:
        super().__init__()
        self.cams = cams

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        names = ["scores"] + (["evidence_logits"] if self.cams.options.has_sigmoid else [])
        single = len(self.cams.evidence.layouts) == 1
        return [*names, *(["cam_weights"] if single else []), "cams"]

    def forward(self, entry: Tensor, class_ids: Tensor) -> tuple[Tensor, ...]:
        """One pass.

        Args:
            entry: float32 [B, ...], the output of the artifact that `head_input` names.
            class_ids: int64 [B, K], ids 0 to C - 1.
        """
        outputs = self.cams.explain(self.cams.evidence.run(entry), class_ids)
        return tuple(outputs[name] for name in self.output_names)


class Select(nn.Module):
    """Which classes get a map, from the logits [B, C]: int64 [B, K]."""

    def __init__(self, classes: ClassSelection, num_classes: int) -> None:
        super().__init__()
        self.mode: SelectionMode = classes.mode
        self.k = classes.k
        self.ranks = min(num_classes, MAX_RANKS)

    def forward(self, logits: Tensor, class_ids: Tensor | None) -> Tensor:
        """The chosen ids; for "input", ranks (-1, -2, ...) become ids."""
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
