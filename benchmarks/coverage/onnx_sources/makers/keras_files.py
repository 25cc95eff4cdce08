"""Files of Keras networks: by tf2onnx, and by Keras 3's own export.

Needs an environment with tensorflow-cpu and tf2onnx. The maps are GradientTape's, of the same
network built again in float64.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common


@dataclass(frozen=True)
class Network:
    """A Keras network and how it is exported.

    Attributes:
        arch: its name in `keras.applications`, or "file/" and an HDF5 file.
        opset: of tf2onnx; None for `model.export(format="onnx")`.
        side: of the input.
        own_range: whether the network normalises pixels from 0 to 255 itself.
        nchw: whether tf2onnx is told to take channels first.
        options: for the network's function.
    """

    arch: str
    opset: int | None = 13
    side: int = 96
    own_range: bool = False
    nchw: bool = False
    options: tuple[tuple[str, Any], ...] = ()


NETWORKS = {
    "Keras MobileNetV2, tf2onnx": Network("MobileNetV2", options=(("alpha", 0.35),)),
    "Keras MobileNetV2, odd input, tf2onnx": Network(
        "MobileNetV2", 17, 97, options=(("alpha", 0.35),)
    ),
    "Keras EfficientNetB0, tf2onnx": Network("EfficientNetB0", own_range=True),
    "Keras ResNet50V2, tf2onnx": Network("ResNet50V2"),
    "Keras ResNet50, channels first, tf2onnx": Network("ResNet50", 11, nchw=True),
    "Keras MobileNetV3Small, tf2onnx": Network("MobileNetV3Small", own_range=True),
    "Keras MobileNet, Keras's export": Network("MobileNet", None),
    "Keras VGG16, tf2onnx": Network("VGG16", 9, 64),
    "Keras EfficientNetV2B0, Keras's export": Network("EfficientNetV2B0", None, own_range=True),
    "Keras ConvNeXtTiny, tf2onnx": Network("ConvNeXtTiny", 17, 64, own_range=True),
}  # fmt: skip


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what GradientTape gives for it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    network = NETWORKS[name]
    model = build(network)
    export(model, network, folder)
    weights = model.get_weights()
    keras.backend.set_floatx("float64")
    explain(build(network), weights, network, folder)
    keras.backend.set_floatx("float32")
    packages = ["tensorflow-cpu", "keras", "tf2onnx"]
    mean, std = (None, None) if network.own_range else (common.MEAN, common.STD)
    common.write_about(
        folder,
        common.About(common.versions(*packages), (network.side, network.side), mean, std),
    )


def build(network: Network) -> Any:
    """Builds a network with random weights, and norms that do something."""
    import keras

    keras.utils.set_random_seed(0)
    function = getattr(keras.applications, network.arch)
    model = function(
        weights=None, classes=10, input_shape=(network.side, network.side, 3),
        **dict(network.options),
    )  # fmt: skip
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            drawn = [generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()]
            layer.set_weights(drawn)
    return model


def export(model: Any, network: Network, folder: Path) -> None:
    """Writes a network's ONNX file."""
    path = str(folder / common.MODEL)
    if network.opset is None:
        model(np.zeros((1, network.side, network.side, 3), np.float32))  # as it asks for
        model.export(path, format="onnx", verbose=False)
        return
    import tensorflow as tf
    import tf2onnx

    signature = (tf.TensorSpec((None, network.side, network.side, 3), tf.float32, "images"),)
    options = {"inputs_as_nchw": ["images"]} if network.nchw else {}
    tf2onnx.convert.from_keras(model, signature, opset=network.opset, output_path=path, **options)


def explain(model: Any, weights: Any, network: Network, folder: Path) -> None:
    """Writes the map that GradientTape gives, in float64."""
    import keras
    import tensorflow as tf

    model.set_weights(weights)
    pixels = common.images(network.side, network.side)
    given = pixels if network.own_range else common.normalised(pixels)
    # The network's end without its softmax, so that the gradient is of the logit.
    model.layers[-1].activation = keras.activations.linear
    layer = _last_grid(model)
    both = keras.Model(model.input, [layer.output, model.layers[-1](model.layers[-2].output)])
    with tf.GradientTape() as tape:
        features, logits = both(tf.constant(given, tf.float64), training=False)
        score = tf.reduce_sum(tf.reduce_max(logits, 1))
    gradients = tape.gradient(score, features)
    first = (0, 3, 1, 2)
    common.write_reference(
        folder, pixels, logits.numpy(), features.numpy().transpose(first),
        gradients.numpy().transpose(first),
    )  # fmt: skip


def _last_grid(model: Any) -> Any:
    """Returns the last layer whose value is a grid of several positions."""
    shapes = [(layer, layer.output.shape) for layer in model.layers]
    return [layer for layer, s in shapes if len(s) == 4 and s[1] * s[2] > 1][-1]


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    common.main(FILES)
