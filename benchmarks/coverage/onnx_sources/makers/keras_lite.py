"""EfficientNet-Lite0 as a Keras network, with the trained weights of its PyTorch package.

The weights come out of the ONNX file that PyTorch's old exporter writes, in which norms are folded
into convolutions: they stand there in order, with biases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SOURCE = "EfficientNet-Lite0 (trained weights), opset 13"
"""The row whose file holds the weights."""


def transplanted(path: Path) -> Any:
    """Builds the network.

    Args:
        path: the ONNX file.
    """
    import keras
    import onnx

    if not path.exists():
        raise FileNotFoundError(f"{path} isn't there; make {SOURCE!r} first")
    graph = onnx.load(str(path)).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    convs = [_Conv(node, stored) for node in graph.node if node.op_type == "Conv"]
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    image = keras.Input((224, 224, 3), name="images")
    x = convs[0].apply(image, "stem", relu=True)
    block: list[_Conv] = []
    for conv in convs[1:-1]:
        block.append(conv)
        if conv.depthwise or not any(part.depthwise for part in block):
            continue  # a block ends with the first convolution after its depthwise one
        name, first = f"block{conv.number}", x
        for i, part in enumerate(block):
            x = part.apply(x, f"{name}_{i}", relu=part is not conv)
        if first.shape == x.shape:
            x = keras.layers.Add(name=f"{name}_add")([first, x])
        block = []
    x = convs[-1].apply(x, "head", relu=True)
    x = keras.layers.GlobalAveragePooling2D()(x)
    matrix, bias = (stored[name] for name in gemm.input[1:])
    dense = keras.layers.Dense(len(bias), activation="softmax", name="predictions")
    model = keras.Model(image, dense(x))
    dense.set_weights([matrix.T, bias])
    return model


class _Conv:
    """One convolution of the file."""

    def __init__(self, node: Any, stored: dict[str, Any]) -> None:
        own = {a.name: a for a in node.attribute}
        self.weight = stored[node.input[1]]
        self.bias = stored[node.input[2]]
        self.stride = own["strides"].ints[0]
        self.depthwise = own["group"].i > 1
        self.number = node.output[0].replace("/", "_")

    def apply(self, x: Any, name: str, relu: bool) -> Any:
        """Adds the layers to a network."""
        import keras

        options = {"strides": self.stride, "padding": "same", "name": name}
        size = self.weight.shape[-1]
        if self.depthwise:
            layer = keras.layers.DepthwiseConv2D(size, **options)
            kernel = self.weight.transpose(2, 3, 0, 1)
        else:
            layer = keras.layers.Conv2D(len(self.weight), size, **options)
            kernel = self.weight.transpose(2, 3, 1, 0)
        x = layer(x)
        layer.set_weights([np.asarray(kernel), self.bias])
        return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x
