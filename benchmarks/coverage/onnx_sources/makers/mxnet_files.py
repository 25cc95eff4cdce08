"""Files of MXNet's Gluon networks, by its own exporter: MXNet 1.9.1, its last version, of 2022.

Needs an environment with that version, numpy 1.23.5 and onnx 1.14.1. The maps are its autograd's.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common

NETWORKS = {
    "MXNet resnet18_v1": "resnet18_v1",
    "MXNet resnet18_v2": "resnet18_v2",
    "MXNet mobilenet0.25": "mobilenet0.25",
    "MXNet mobilenetv2_0.25": "mobilenetv2_0.25",
}
_SIDE = 64


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what MXNet's autograd gives."""
    if "bool" not in np.__dict__:
        np.bool = bool  # a name that NumPy had when MXNet was written
    import mxnet as mx

    mx.random.seed(0)
    model = mx.gluon.model_zoo.vision.get_model(NETWORKS[name], classes=10)
    model.initialize(mx.init.Xavier())
    pixels = common.images(_SIDE, _SIDE)
    images = mx.nd.array(common.normalised(pixels).transpose(0, 3, 1, 2))
    for _ in range(3):
        with mx.autograd.record():  # the norms' running statistics
            model(images)
    model.hybridize()
    model(images)
    shape = (1, 3, _SIDE, _SIDE)
    with tempfile.TemporaryDirectory() as scratch:
        model.export(f"{scratch}/net")
        parts = f"{scratch}/net-symbol.json", f"{scratch}/net-0000.params"
        mx.onnx.export_model(*parts, [shape], np.float32, str(folder / common.MODEL))
    layers = list(model.features)
    pool = next(i for i in reversed(range(len(layers))) if _pools(layers[i]))
    features = images
    for layer in layers[:pool]:
        features = layer(features)
    features.attach_grad()
    with mx.autograd.record(train_mode=False):
        value = features
        for layer in layers[pool:]:
            value = layer(value)
        logits = model.output(value)
        score = logits.max(axis=1).sum()
    score.backward()
    common.write_reference(
        folder, pixels, logits.asnumpy(), features.asnumpy(), features.grad.asnumpy()
    )
    about = common.About(f"mxnet {mx.__version__}", (_SIDE, _SIDE), note="batch of 1")
    common.write_about(folder, about)


def _pools(layer: object) -> bool:
    return type(layer).__name__ in ("GlobalAvgPool2D", "AvgPool2D")


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    common.main(FILES)
