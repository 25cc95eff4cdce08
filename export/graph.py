"""The module that is exported: picture in, prediction and evidence map out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sigcam.export.methods import MethodOptions, method_class
from sigcam.runtime.errors import ExportError, UsageError
from sigcam.runtime.spec import (
    MAX_RANKS,
    Branch,
    ClassSelection,
    Geometry,
    InputLayout,
    Profile,
    SelectionMode,
)
from sigcam.train.dual_branch import DualBranch


@dataclass(frozen=True)
class GraphOptions:
    """What the graph computes; see `export_artifact` for the meaning of each.

    Raises:
        UsageError: options that contradict each other.
    """

    method: str = "cam"
    branch: Branch = "sigmoid"
    nwc: bool = True
    profile: Profile = "fused"
    classes: ClassSelection = field(default_factory=ClassSelection)
    has_sigmoid: bool = True
    sigmoid_logits: bool = False

    def __post_init__(self) -> None:
        method_class(self.method)
        if not self.has_sigmoid and (self.branch == "sigmoid" or self.sigmoid_logits):
            wanted = "branch='sigmoid'" if self.branch == "sigmoid" else "sigmoid_logits=True"
            raise UsageError(
                f"{wanted} needs a trained sigmoid branch, but has_sigmoid is False; load one, "
                f"or export with branch='softmax' and without sigmoid_logits"
            )

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        names = ["logits", "class_ids_out"]
        names += ["evidence_logits"] if self.has_sigmoid else []
        names += ["sigmoid_logits"] if self.sigmoid_logits else []
        return names + (["grids"] if self.profile == "fused" else ["features", "cam_weights"])


class Normalise(nn.Module):
    """`image` as the artifact takes it to normalised float32 [B, 3, H, W]."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.layout: InputLayout = geometry.layout
        mean = torch.tensor(geometry.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        std = torch.tensor(geometry.std, dtype=torch.float64).reshape(1, 3, 1, 1)
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

    def __init__(self, dual: DualBranch, geometry: Geometry) -> None:
        super().__init__()
        self.normalise = Normalise(geometry)
        self.features = dual.features
        self.head = dual.softmax_head

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.head(self.features(self.normalise(image)))
        return logits


class ArtifactGraph(nn.Module):
    """The artifact's graph: outputs as `GraphOptions.output_names` lists them."""

    def __init__(self, dual: DualBranch, options: GraphOptions, geometry: Geometry) -> None:
        """Takes the parts of `dual`, without changing it.

        Raises:
            ExportError: the method can't express this head.
            UsageError: k is above the number of classes.
        """
        super().__init__()
        self.options = options
        self.normalise = Normalise(geometry)
        self.features = dual.features
        self.select = Select(options.classes, dual.num_classes)
        self.method = method_class(options.method)(
            dual, MethodOptions(options.branch, options.has_sigmoid, options.sigmoid_logits)
        )

    def forward(self, image: Tensor, class_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """One pass.

        Args:
            image: uint8 [B, H, W, 3] RGB or float32 [B, 3, H, W], by the geometry.
            class_ids: int64 [B, K], for the class selection "input".
        """
        features = self.features(self.normalise(image))
        pooled = self.method.pool(features)
        logits = self.method.logits(pooled)
        ids = self.select(logits, class_ids)
        found = self.method.explain(features, pooled, ids)
        outputs = [logits, ids, found.evidence_logits, found.sigmoid_logits]
        if self.options.profile == "fused":
            outputs += [combine(found.weights, features, self.options.nwc)]
        else:
            outputs += [features, found.weights]
        return tuple(output for output in outputs if output is not None)


class Select(nn.Module):
    """Which classes get a map, from the logits [B, C]: int64 [B, K]."""

    def __init__(self, classes: ClassSelection, num_classes: int) -> None:
        super().__init__()
        if classes.k > num_classes:
            raise UsageError(
                f"k must be at most the number of classes {num_classes}, got {classes.k}"
            )
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
        # A fixed number of ranks: engines other than ONNX Runtime want TopK's k constant.
        ranked = logits.topk(self.ranks, 1).indices
        rank = (-class_ids - 1).clamp(0, self.ranks - 1)
        return torch.where(class_ids < 0, ranked.gather(1, rank), class_ids)


def combine(weights: Tensor, features: Tensor, nwc: bool) -> Tensor:
    """The grids: max(0, sum_n w_n F_n), with w clamped at 0 first under NWC.

    Beyond Softmax, Eq. 4 with negative-weight clamping.

    Args:
        weights: [B, K, N], signed.
        features: [B, N, h, w].
        nwc: whether negative weights are clamped.

    Returns:
        [B, K, h, w], >= 0.
    """
    _, N, h, w = features.shape
    used = weights.relu() if nwc else weights
    grids = (used @ features.reshape(-1, N, h * w)).relu()
    K = weights.shape[1]
    # -1 for the batch keeps the reshape a constant where K is one.
    batch = -1 if isinstance(K, int) else weights.shape[0]
    return grids.reshape(batch, K, h, w)
