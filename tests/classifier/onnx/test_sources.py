"""Files of torch.onnx's two exporters: read, split and exported again, with maps that agree."""

from __future__ import annotations

import contextlib
import io
import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sigcam import ExportOptions, build_classifier, export_artifact
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.onnx.load import read_classifier

pytestmark = pytest.mark.slow
CHANNELS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
METHODS = ["gradcam", "gradcam++", "xgradcam", "layercam", "hirescam"]


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.down = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))) + self.down(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = Block(3, 8), Block(8, 12)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layer2(self.layer1(x))), 1))


class ViT(nn.Module):
    """A class token, positions, and torch's own attention."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x if self.batch_first else x.transpose(0, 1)
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


def network(name):
    torch.manual_seed(0)
    if name == "vit":
        return ViT().eval()
    if name == "sequence first":
        return ViT(batch_first=False).eval()
    return ResNet().eval()


def write(model, path, *, opset=None, dynamic=False, size=32):
    """Exports with the old exporter, or with the new one where no opset is given."""
    example = torch.randn(2 if dynamic else 1, 3, size, size)
    options = {"input_names": ["x"], "output_names": ["y"], "verbose": False}
    if opset is None:
        options["dynamo"] = True
        if dynamic:
            options["dynamic_shapes"] = ({0: torch.export.Dim("b")},)
    else:
        options |= {"dynamo": False, "opset_version": opset}
        if dynamic:
            options["dynamic_axes"] = {"x": {0: "b"}, "y": {0: "b"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(path), **options)
    return path


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "opset"),
    [*[("resnet", o) for o in (9, 11, 13, 17, None)], *[("vit", o) for o in (14, 17, None)],
     ("sequence first", 17), ("sequence first", None)],
)  # fmt: skip
def test_logits_of_a_batch(tmp_path, name, opset, dynamic):
    model = network(name)
    read = read_classifier(write(model, tmp_path / "m.onnx", opset=opset, dynamic=dynamic))
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read.model(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "opset"), [("resnet", 11), ("resnet", None), ("vit", 17)])
def test_the_artifact_is_that_of_the_pytorch_model(tmp_path, name, opset):
    """The maps of the file read equal those of the network that it was exported from."""
    import onnxruntime as ort

    model = network(name)
    path = write(model, tmp_path / "m.onnx", opset=opset)
    built = build_classifier(str(path), **CHANNELS)
    direct = DualBranch(model, input_size=32)
    assert built.dual.targets[0].layout == direct.targets[0].layout
    options = ExportOptions(method="gradcam", branch="softmax", preprocessing=built.preprocessing)
    image = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    results = []
    for i, classifier in enumerate((built, direct)):
        out = tmp_path / f"{i}.onnx"
        spec = export_artifact(classifier, out, options)
        session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        results.append(session.run(["logits", "cams"], {session.get_inputs()[0].name: image}))
        if classifier is built:
            assert spec.source.architecture == str(path)
            assert len(spec.source.file_sha256) == 64
            properties = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
            assert spec.source.file_sha256 in json.dumps(properties)
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_every_method_in_the_graph(tmp_path):
    path = write(network("resnet"), tmp_path / "m.onnx", opset=13, dynamic=True)
    built = build_classifier(str(path), **CHANNELS)
    for method in ("cam", *METHODS):
        spec = export_artifact(
            built, tmp_path / "o.onnx", ExportOptions(method=method, branch="softmax")
        )
        assert all(error.max_rel < 1e-4 for error in spec.parity.outputs.values())


def test_a_softmax_at_the_end_is_taken_off(tmp_path):
    model = nn.Sequential(network("resnet"), nn.Softmax(1))
    built = build_classifier(str(write(model, tmp_path / "m.onnx", opset=13)), **CHANNELS)
    assert built.dual.squashing == "softmax"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("opset", [13, None])
def test_networks_of_torchvision(tmp_path, name, opset):
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10).eval()
    path = write(model, tmp_path / "m.onnx", opset=opset, size=64)
    built = build_classifier(str(path), **CHANNELS)
    spec = export_artifact(
        built, tmp_path / "o.onnx", ExportOptions(method="gradcam", branch="softmax")
    )
    assert spec.parity.outputs["logits"].max_rel < 1e-4


def test_inputs_that_nothing_takes(tmp_path):
    """Keras's export leaves constants of its normalisation among the inputs, folded away."""
    model = network("resnet")
    path = write(model, tmp_path / "m.onnx", opset=13)
    file = onnx.load(str(path))
    for name, shape in (("norm/Sub", [1, 1, 1, 3]), ("norm/Sqrt", [1, 1, 1, 3])):
        file.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    onnx.save(file, str(path))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = read_classifier(path).model(images)
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


def joined(tmp_path, head, opset=17):
    """The little ResNet's pooled features with a head of scikit-learn's, and its probabilities."""
    skl2onnx = pytest.importorskip("skl2onnx")
    model = network("resnet")
    model.fc = nn.Identity()
    images = torch.randn(40, 3, 32, 32)
    with torch.no_grad():
        pooled = model(images).numpy()
    head.fit(pooled, np.arange(len(pooled)) % 4)
    base = onnx.load(str(write(model, tmp_path / "base.onnx", opset=opset, dynamic=True)))
    kind = skl2onnx.common.data_types.FloatTensorType([None, pooled.shape[1]])
    second = skl2onnx.to_onnx(head, initial_types=[("f", kind)], options={"zipmap": False},
                              target_opset=opset)  # fmt: skip
    base.ir_version = second.ir_version = 8
    path = tmp_path / "m.onnx"
    onnx.save(onnx.compose.merge_models(base, second, [("y", "f")]), str(path))
    return path, images, head.predict_proba(pooled)


@pytest.mark.parametrize("kind", ["scaled", "PCA"])
def test_heads_of_scikit_learn(tmp_path, kind):
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = {
        "scaled": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        "PCA": lambda: make_pipeline(PCA(5), LogisticRegression()),
    }[kind]()
    path, images, expected = joined(tmp_path, head)
    built = build_classifier(f"{path}#probabilities", size=32, **CHANNELS)
    assert built.dual.squashing == "softmax"
    with torch.no_grad():
        found = built.dual(images).logits.softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_what_onnxsim_leaves(tmp_path, name):
    onnxsim = pytest.importorskip("onnxsim")
    model = network(name)
    simple, good = onnxsim.simplify(onnx.load(str(write(model, tmp_path / "m.onnx", opset=17))))
    assert good
    onnx.save(simple, str(tmp_path / "s.onnx"))
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        found = read_classifier(tmp_path / "s.onnx").model(images)
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_what_onnx_runtime_optimises(tmp_path, level):
    import onnxruntime as ort

    model, path = network("resnet"), tmp_path / "o.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    source = write(model, tmp_path / "m.onnx", opset=17)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    others = {n.op_type for n in onnx.load(str(path)).graph.node if n.domain == "com.microsoft"}
    assert bool(others) == (level == "EXTENDED")
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        found = read_classifier(path).model(images)
        torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_onnx_runtime_quantises(tmp_path, form, per_channel):
    """The float path is near the network that was quantised, and has a gradient."""
    from onnxruntime import quantization

    model = network("resnet")
    images = torch.randn(8, 3, 32, 32)

    class Reader(quantization.CalibrationDataReader):
        left = iter([{"x": images[i : i + 1].numpy()} for i in range(8)])

        def get_next(self):
            return next(self.left, None)

    source, path = write(model, tmp_path / "m.onnx", opset=13), tmp_path / "q.onnx"
    quantization.quantize_static(
        str(source), str(path), Reader(), getattr(quantization.QuantFormat, form),
        per_channel=per_channel,
    )  # fmt: skip
    read = read_classifier(path)
    assert "quantised" in read.notes[0]
    images.requires_grad_()
    found = read.model(images)
    found.sum().backward()
    found, expected = found.detach(), model(images).detach()
    assert images.grad.abs().max() > 0
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05
