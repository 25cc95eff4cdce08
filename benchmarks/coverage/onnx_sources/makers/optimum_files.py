"""Files of Hugging Face's optimum, of small configurations of transformers' classifiers.

Needs an environment with optimum-onnx, which wants an older transformers than sigcam. The maps are
those of hooks on the network itself, in float64.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.coverage.onnx_sources.makers import common

_VIT = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96,
    "image_size": 64, "patch_size": 8,
}  # fmt: skip
_CONV = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4}

NETWORKS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "optimum ViT": ("ViT", _VIT, "vit.encoder.layer.2.layernorm_before", "tokens"),
    "optimum ResNet": ("ResNet", {**_CONV, "layer_type": "basic"}, "resnet.encoder", "nchw"),
    "optimum ConvNext": (
        "ConvNext", {"hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4}, "convnext.encoder",
        "nchw",
    ),
    "optimum MobileNetV2": (
        "MobileNetV2", {"depth_multiplier": 0.25, "image_size": 64}, "mobilenet_v2.conv_1x1",
        "nchw",
    ),
    "optimum Swin": (
        "Swin", {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2],
                 "num_heads": [2, 2], "window_size": 4}, "swin.layernorm", "tokens",
    ),
}  # fmt: skip
"""Row to the family, its configuration, the layer of the map and that layer's layout."""
_SIDE = 64


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what it computes by itself."""
    import torch
    import transformers
    from optimum.exporters.onnx import main_export

    torch.manual_seed(0)
    family, given, layer, layout = NETWORKS[name]
    config = getattr(transformers, f"{family}Config")(**given, num_labels=10)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            width = value[0].numel() if value.ndim > 1 else 100
            value.add_(torch.randn(value.shape) * width**-0.5)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        transformers.ViTImageProcessor(size={"height": _SIDE, "width": _SIDE}).save_pretrained(
            scratch
        )
        main_export(scratch, folder, task="image-classification", do_validation=False)
    pixels = common.images(_SIDE, _SIDE)
    images = torch.from_numpy(common.normalised(pixels).transpose(0, 3, 1, 2).copy()).double()
    kept: list[Any] = []

    def hook(_module: Any, _inputs: Any, value: Any) -> None:
        value = value if isinstance(value, torch.Tensor) else value[0]
        value.retain_grad()
        kept.append(value)

    model = model.double()
    model.get_submodule(layer).register_forward_hook(hook)
    logits = model(images.requires_grad_()).logits
    logits.max(1).values.sum().backward()
    value = kept[-1]
    common.write_reference(
        folder, pixels, logits.detach().numpy(), _grid(value.detach(), layout),
        _grid(value.grad, layout),
    )  # fmt: skip
    about = common.About(
        common.versions("optimum", "optimum-onnx", "transformers", "torch"), (_SIDE, _SIDE)
    )
    common.write_about(folder, about)


def _grid(value: Any, layout: str) -> Any:
    array = value.numpy()
    if layout == "nchw":
        return array
    side = int(array.shape[1] ** 0.5)
    grid = array[:, array.shape[1] - side * side :]
    return grid.transpose(0, 2, 1).reshape(len(grid), -1, side, side)


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    common.main(FILES)
