"""grad-cam, torchcam and captum, each as its manual uses it and as it is fastest.

All take the normalised batch [B, 3, H, W] and give maps [B, H, W] in [0, 1] at the
input's size, of the predicted class. As in the manual, the network is used as it comes.
At its best ("frozen"), no parameter takes a gradient but one right before the target
layer, so that PyTorch keeps nothing of the layers below; without that one grad-cam's and
torchcam's hooks would see no gradient.

captum is told the class, so a user runs the network first to know it; at its best it is
given the class, which is no prediction any more: less than what the others do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
from torch import Tensor
from torch.nn.functional import interpolate

GRAD_CAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
}
TORCHCAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMpp",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
}
METHODS = tuple(GRAD_CAM)
"""Methods of one pass that a peer has too.

finercam isn't among them: grad-cam's weighs the similar classes in another way.
"""


@dataclass(frozen=True)
class Target:
    """Where a network's map is taken.

    Attributes:
        layer: name of the module.
        unfrozen: the parameter that keeps its gradient where the others are frozen.
    """

    layer: str
    unfrozen: str


TARGETS = {
    "resnet18": Target("layer4.1", "layer4.1.bn2.bias"),
    "resnet50": Target("layer4.2", "layer4.2.bn3.bias"),
    "vgg16": Target("features.30", "features.28.bias"),
}

Heatmaps = Callable[[Tensor], Any]
"""A normalised batch to float32 [B, H, W]."""


def freeze(model: Any, unfrozen: str | None) -> None:
    """Lets one parameter take gradients, or with None all."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(unfrozen is None or name == unfrozen)


def packages(model: Any, target: Target, method: str) -> dict[str, Heatmaps]:
    """Package and way of use to the function that makes the maps."""
    found: dict[str, Heatmaps] = {}
    made = {
        "grad-cam": grad_cam(model, target, method),
        "torchcam": torchcam(model, target, method),
        "captum": captum(model, target, method),
    }
    for name, call in made.items():
        if call is None:
            continue
        found[name] = _with(model, None, lambda batch, call=call: call(batch, False))
        found[f"{name}, frozen"] = _with(
            model, target.unfrozen, lambda batch, call=call: call(batch, True)
        )
    return found


def _with(model: Any, unfrozen: str | None, call: Heatmaps) -> Heatmaps:
    def run(batch: Tensor) -> Any:
        freeze(model, unfrozen)
        return call(batch)

    return run


Peer = Callable[[Tensor, bool], Any]


def grad_cam(model: Any, target: Target, method: str) -> Peer | None:
    """One object, made once; the class is the predicted one."""
    kind = getattr(pytorch_grad_cam, GRAD_CAM[method])
    layer = model.get_submodule(target.layer)

    def run(batch: Tensor, frozen: bool) -> Any:  # noqa: ARG001 (the same call either way)
        # Hooks are there for this call only: they would cost the other packages time.

        with kind(model, [layer]) as cam:
            return cam(input_tensor=batch, targets=None)

    return run


def torchcam(model: Any, target: Target, method: str) -> Peer | None:
    """Scores by the network itself, then the maps of the predicted classes."""
    if method not in TORCHCAM:
        return None
    try:
        from torchcam import methods
    except ImportError:  # needs Python 3.11
        return None
    kind = getattr(methods, TORCHCAM[method])

    def run(batch: Tensor, frozen: bool) -> Any:  # noqa: ARG001 (the same call either way)
        with kind(model, target.layer) as cam:
            scores = model(batch)
            [cams] = cam(scores.argmax(1).tolist(), scores)
        return _enlarged(cams[:, None], batch)

    return run


def captum(model: Any, target: Target, method: str) -> Peer | None:
    """LayerGradCam: the only method that it shares."""
    if method != "gradcam":
        return None
    from captum.attr import LayerGradCam

    peer = LayerGradCam(model, model.get_submodule(target.layer))
    known: dict[int, Tensor] = {}

    def run(batch: Tensor, frozen: bool) -> Any:
        classes = known.get(len(batch)) if frozen else None
        if classes is None:
            with torch.no_grad():
                classes = known[len(batch)] = model(batch).argmax(1)
        cams = peer.attribute(batch, target=classes, relu_attributions=True)
        return _enlarged(cams.detach(), batch)

    return run


def _enlarged(cams: Tensor, batch: Tensor) -> Any:
    """CAMs [B, 1, h, w] to maps [B, H, W], bilinear, then to [0, 1]."""
    heatmaps = interpolate(cams, batch.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = heatmaps.amin((1, 2), keepdim=True), heatmaps.amax((1, 2), keepdim=True)
    return ((heatmaps - low) / (high - low).clamp_min(1e-30)).numpy()


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference of two batches of maps, both to [0, 1] exactly first.

    The packages' own scaling adds small constants to the divisor.
    """
    ours, theirs = (_scaled(np.asarray(heatmaps)) for heatmaps in (ours, theirs))
    return float(np.abs(ours - theirs).max())


def _scaled(heatmaps: Any) -> Any:
    low = heatmaps.min((1, 2), keepdims=True)
    return (heatmaps - low) / np.maximum(heatmaps.max((1, 2), keepdims=True) - low, 1e-30)
