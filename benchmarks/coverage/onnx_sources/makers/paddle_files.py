"""Files of PaddlePaddle's vision networks, by paddle2onnx.

Needs an environment with paddlepaddle and paddle2onnx. The maps are Paddle's own autograd's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common

NETWORKS: dict[str, tuple[str, str, int]] = {
    "Paddle resnet18": ("resnet18", "layer4", 11),
    "Paddle mobilenet_v2": ("mobilenet_v2", "features", 13),
    "Paddle mobilenet_v3_small": ("mobilenet_v3_small", "lastconv", 11),
    "Paddle shufflenet_v2_x0_25": ("shufflenet_v2_x0_25", "_last_conv", 11),
}
"""Row to the function of `paddle.vision.models`, the layer of the map, and the opset."""
_SIDE = 64


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what Paddle's autograd gives."""
    import paddle

    paddle.seed(0)
    arch, layer, opset = NETWORKS[name]
    model = getattr(paddle.vision.models, arch)(num_classes=10)
    generator = np.random.default_rng(0)
    for part in model.sublayers():
        if isinstance(part, paddle.nn.BatchNorm2D):
            for value in (part.weight, part._variance):
                drawn = generator.uniform(0.5, 1.5, value.shape)
                value.set_value(drawn.astype(np.float32))
    model.eval()
    shape = paddle.static.InputSpec([None, 3, _SIDE, _SIDE], "float32", "images")
    paddle.onnx.export(model, str(folder / "model"), input_spec=[shape], opset_version=opset)
    pixels = common.images(_SIDE, _SIDE)
    kept: list[Any] = []

    def hook(_module: Any, _inputs: Any, value: Any) -> Any:
        value.retain_grads()
        kept.append(value)
        return value

    handle = dict(model.named_sublayers())[layer].register_forward_post_hook(hook)
    images = paddle.to_tensor(common.normalised(pixels).transpose(0, 3, 1, 2).copy())
    images.stop_gradient = False
    logits = model(images)
    handle.remove()
    logits.max(1).sum().backward()
    common.write_reference(folder, pixels, logits.numpy(), kept[-1].numpy(), kept[-1].grad.numpy())
    about = common.About(common.versions("paddlepaddle", "paddle2onnx"), (_SIDE, _SIDE))
    common.write_about(folder, about)


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    common.main(FILES)
