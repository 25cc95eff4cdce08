"""Files that a tool has made of another: simplified, optimised, quantised, halved, joined."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage.onnx_sources.makers import common, torch_files
from benchmarks.coverage.onnx_sources.makers.torch_files import Network

_SMALL = Network("mobilenet_v3_small", "features", 13)
_RESNET = Network("resnet18", "layer4", 11)
_VIT = Network("timm/vit_tiny_patch16_224", "blocks.11.norm1", 17, 96, "tokens")
_ATTENTION = torch_files.ATTENTION
_SHUFFLE = Network("shufflenet_v2_x0_5", "conv5", 13)
_CONVNEXT = Network("timm/convnext_atto", "stages", 17)


def _base(network: Network, folder: Path) -> Any:
    """Exports a network, writes its own map, and returns the ONNX model."""
    import onnx
    import torch

    torch.set_num_threads(1)
    model = torch_files.build(network)
    pixels = common.images(network.side, network.side)
    images = torch.from_numpy(common.normalised(pixels).transpose(0, 3, 1, 2).copy())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "base.onnx"
        torch_files.export(model, images, network, path)
        torch_files.explain(model, images, network, folder, pixels)
        return onnx.load(str(path))


def _finish(network: Network, folder: Path, model: Any, *packages: str, **about: Any) -> None:
    import onnx

    if model is not None:
        onnx.save(model, str(folder / common.MODEL))
    size = (network.side, network.side)
    common.write_about(folder, common.About(common.versions("torch", *packages), size, **about))


def simplified(network: Network, folder: Path) -> None:
    """Writes what onnxsim leaves of a file."""
    import onnxsim

    model, good = onnxsim.simplify(_base(network, folder))
    if not good:
        raise ValueError("onnxsim's own check failed")
    _finish(network, folder, model, "onnxsim")


def optimised(network: Network, level: str, folder: Path) -> None:
    """Writes what ONNX Runtime's optimiser makes of a file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(folder / common.MODEL)
    options.log_severity_level = 4
    base = _base(network, folder).SerializeToString()
    ort.InferenceSession(base, options, providers=["CPUExecutionProvider"])
    _finish(network, folder, None, "onnxruntime")


def quantised(network: Network, operators: bool, per_channel: bool, folder: Path) -> None:
    """Writes what ONNX Runtime's quantize_static makes of a file."""
    import onnx
    from onnxruntime import quantization as q

    pixels = common.images(network.side, network.side)
    images = common.normalised(pixels).transpose(0, 3, 1, 2)

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        left = iter([{"images": np.ascontiguousarray(images[i : i + 1])} for i in range(4)])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base.onnx"
        onnx.save(_base(network, folder), str(base))
        q.quantize_static(
            str(base), str(folder / common.MODEL), Reader(), per_channel=per_channel,
            quant_format=q.QuantFormat.QOperator if operators else q.QuantFormat.QDQ,
        )  # fmt: skip
    _finish(network, folder, None, "onnxruntime", quantised=True)


def halved(network: Network, folder: Path) -> None:
    """Writes a file in half precision; its map is that of the network with rounded weights."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(_base(network, folder))
    _finish(network, folder, model, "onnxruntime", quantised=True)


def apart(network: Network, folder: Path) -> None:
    """Writes a file whose weights lie beside it."""
    import onnx

    onnx.save(
        _base(network, folder), str(folder / common.MODEL), save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    _finish(network, folder, None, "onnx")


def joined(kind: str, folder: Path) -> None:
    """Writes a network's pooled features with a head of scikit-learn's behind them."""
    import onnx
    import torch
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    torch.set_num_threads(1)
    network = Network("mobilenet_v3_small", "features", 17, dynamic=True)
    model = torch_files.build(network)
    model.classifier = torch.nn.Identity()
    pixels = common.images(network.side, network.side)
    images = torch.from_numpy(common.normalised(pixels).transpose(0, 3, 1, 2).copy())
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        path = Path(scratch) / "base.onnx"
        torch_files.export(model, images, network, path)
        base = onnx.load(str(path))
        pooled = model(images).numpy()
    generator = np.random.default_rng(0)
    data = np.concatenate([pooled + generator.normal(0, pooled.std(), pooled.shape)] * 10)
    data += generator.normal(0, pooled.std(), data.shape)
    head = _heads()[kind].fit(data.astype(np.float32), np.arange(len(data)) % 4)
    width = [None, pooled.shape[1]]
    options = {"zipmap": False} if hasattr(head, "predict_proba") else {}
    second = to_onnx(head, initial_types=[("features", FloatTensorType(width))],
                     options=options, target_opset=17)  # fmt: skip
    onnx.helper.set_model_props(second, {})
    base.ir_version = second.ir_version = 8
    whole = onnx.compose.merge_models(base, second, [("logits", "features")])
    onnx.save(whole, str(folder / common.MODEL))
    size = (network.side, network.side)
    common.write_about(
        folder,
        common.About(common.versions("torch", "skl2onnx", "scikit-learn"), size,
                     output="probabilities"),
    )  # fmt: skip


def _heads() -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    return {
        "scaler and logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
        "PCA and logistic regression": make_pipeline(PCA(8), LogisticRegression()),
        "linear SVM": LinearSVC(),
        "MLP": MLPClassifier((16,), max_iter=20),
        "random forest": RandomForestClassifier(3, random_state=0),
    }


_part = functools.partial
FILES: dict[str, Callable[[Path], None]] = {
    "resnet18, onnxsim": _part(simplified, _RESNET),
    "shufflenet_v2_x0_5, onnxsim": _part(simplified, _SHUFFLE),
    "timm vit_tiny, onnxsim": _part(simplified, _VIT),
    "mobilenet_v3_small, ONNX Runtime basic": _part(optimised, _SMALL, "BASIC"),
    "resnet18, ONNX Runtime extended": _part(optimised, _RESNET, "EXTENDED"),
    "timm convnext_atto, ONNX Runtime extended": _part(optimised, _CONVNEXT, "EXTENDED"),
    "timm vit_tiny, ONNX Runtime extended": _part(optimised, _VIT, "EXTENDED"),
    "small ViT of torchvision, ONNX Runtime basic": _part(optimised, _ATTENTION, "BASIC"),
    "small ViT of torchvision, ONNX Runtime extended": _part(optimised, _ATTENTION, "EXTENDED"),
    "resnet18, ONNX Runtime all": _part(optimised, _RESNET, "ALL"),
    "resnet18, QDQ": _part(quantised, _RESNET, False, False),
    "mobilenet_v3_small, QDQ per channel": _part(quantised, _SMALL, False, True),
    "resnet18, QLinear operators": _part(quantised, _RESNET, True, False),
    "timm convnext_atto, half precision": _part(halved, _CONVNEXT),
    "resnet18, external data": _part(apart, _RESNET),
    **{f"CNN and scikit-learn's {kind}": _part(joined, kind) for kind in (
        "scaler and logistic regression", "PCA and logistic regression", "linear SVM", "MLP",
        "random forest")},
}  # fmt: skip

if __name__ == "__main__":
    common.main(FILES)
