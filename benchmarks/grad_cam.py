"""The package grad-cam in PyTorch against the artifact: the same map, from the same picture.

Both start from a decoded picture of the network's input size, uint8 RGB, and end with the
map at that size in [0, 1]. grad-cam is used as its own manual does: one object, made once,
called with the normalised tensor; the class is the predicted one. The artifact has no
sigmoid branch here, as grad-cam has none.

grad-cam's backward pass also makes the gradients of all weights, which nobody needs. Its
users can spare it that by freezing them, all but one before the target layer, without which
its hooks see no gradient. It is timed both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_grad_cam
import torch

from sigcam.demo.timing import alternate
from sigcam.runtime.session import load

METHODS = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "layercam": pytorch_grad_cam.LayerCAM,
}
TARGETS = {
    "resnet50": lambda model: model.layer4[-1],
    "vgg16": lambda model: model.features[-1],
}
UNFROZEN = {
    "resnet50": "layer4.2.bn3.bias",
    "vgg16": "features.28.bias",
}
"""The parameter that keeps its gradient where the others are frozen."""

THREADS = 2
TOLERANCE = 1e-3


def compare(network: Any, rounds: int) -> dict[str, Any]:
    """Figures of each shared method on one network, `network` as in methods.py.

    Stops the run where the two maps don't agree.
    """
    torch.set_num_threads(THREADS)
    model = network.model().eval()
    found = {}
    for method, peer in METHODS.items():
        path = network.artifact(
            method,
            branch="softmax",
            nwc=None if method == "layercam" else False,
            has_sigmoid=False,
        )
        with load(path, "ort", threads=THREADS, spinning=False) as session:
            geometry = session.spec.geometry
            mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (geometry.mean, geometry.std))
            picture = _picture(geometry.height, geometry.width)

            def theirs(
                cam: Any, frozen: bool, pixels: Any = picture, mean: Any = mean, std: Any = std
            ) -> Any:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(not frozen or name == UNFROZEN[network.name])
                tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
                return cam(input_tensor=(tensor - mean) / std, targets=None)[0]

            with peer(model, [TARGETS[network.name](model)]) as cam:
                ours_map = session.explain(picture)[0].map
                apart = max(
                    float(np.abs(ours_map - theirs(cam, frozen)).max()) for frozen in (False, True)
                )
                if not apart <= TOLERANCE:
                    raise SystemExit(f"{method}: the maps differ by {apart:.2g}; nothing was timed")
                calls = {
                    "sigcam": lambda s=session, p=picture: s.explain(p)[0].map,
                    "grad-cam": lambda cam=cam, run=theirs: run(cam, False),
                    "frozen": lambda cam=cam, run=theirs: run(cam, True),
                }
                timing = alternate(calls, max(10, rounds // 3), warmup=3)
        found[method] = {
            "sigcam_ms": timing.median_ms("sigcam"),
            "grad_cam_ms": timing.median_ms("grad-cam"),
            "frozen_ms": timing.median_ms("frozen"),
            "times": timing.ratio("grad-cam", "sigcam"),
            "times_frozen": timing.ratio("frozen", "sigcam"),
            "rounds": max(10, rounds // 3),
            "difference": apart,
        }
    return found


def _picture(height: int, width: int) -> Any:
    """Smooth and random, uint8 [height, width, 3]."""
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    pixels = (255 * fine[0]).clamp(0, 255).byte().permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())
