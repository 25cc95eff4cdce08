"""One network's gradient maps in ONNX Runtime against autograd, for `coverage.py`.

A network of random weights is split, both methods are put into one graph by the modules
that artifacts are made of, and every CAM is compared with `Reference`: the whole model
and PyTorch's autograd, in float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.layer_names import operator_name
from sigcam.classifier.rewrite import in_double
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import ExportError, SigcamError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.export.cam import combine
from sigcam.export.methods import Gradient, method_of
from sigcam.export.modules import ArtifactGraph, CamGraph
from sigcam.export.onnx_model import DEFAULT_OPSET, GraphSignature, to_onnx
from sigcam.export.options import ExportOptions
from sigcam.export.parity.compare import compare, is_unstable, logit_floors
from sigcam.export.parity.inputs import as_images, feed, sample_images
from sigcam.export.parity.reference import Reference

METHODS = ("gradcam", "layercam")
BATCHES = ([0], [1, 2, 0])
"""Which of the sample images (two smooth ones, noise) make the batches of 1 and 3."""
TOLERANCE = 1e-4
OPSET = DEFAULT_OPSET
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass
class Outcome:
    """What became of one network.

    Attributes:
        name: as `load_model` takes it.
        status: "agrees": every CAM within `TOLERANCE`; "differs": a CAM isn't, which an
            export refuses; "unstable": the definition itself jumps on more than half of
            the CAMs; "empty": every CAM is zero, so that nothing was tested; "refused":
            by an error of sigcam's; "failed": by any other error.
        reason: of all but "agrees".
        size: input (H, W).
        head: its operators in words.
        branch_layer, target_layer: as found.
        cam: (N, h, w) of the target layer.
        errors: method to the worst error of a CAM's cells over that CAM's maximum.
        unstable: CAMs that don't count, as the definition jumps within rounding.
        empty: CAMs that are zero everywhere, rightly.
        cams: how many CAMs were compared, those included.
        backbone: whether all of the network went through ONNX, see `check`.
        seconds: of wall time.
        packages: that ran it, with their versions.
    """

    name: str
    status: str = "refused"
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    head: str = ""
    branch_layer: str = ""
    target_layer: str = ""
    cam: tuple[int, int, int] = (0, 0, 0)
    errors: dict[str, float] = field(default_factory=dict)
    unstable: int = 0
    empty: int = 0
    cams: int = 0
    backbone: bool = True
    seconds: float = 0.0
    packages: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def check(name: str, size: int | None = None, *, backbone: bool = True) -> Outcome:
    """Exports and compares one network; never raises for a network that fails.

    Args:
        name: as `load_model` takes it.
        size: side of the input; the network's own when None.
        backbone: whether what comes before the target layer is exported too. Without it,
            PyTorch computes that part, and the rest takes a fraction of the time.
    """
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    outcome, start = Outcome(name, backbone=backbone, packages=packages), time.perf_counter()
    try:
        _check(outcome, size, backbone)
    except SigcamError as exc:
        outcome.reason = f"{type(exc).__name__}: {exc}"
    except Exception as exc:  # a fault of ours: the run must go on, the table must show it
        outcome.status = "failed"
        outcome.reason = f"{type(exc).__name__}: {exc}"
    outcome.reason = outcome.reason.strip().split("\n")[0][:500]
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _check(outcome: Outcome, size: int | None, backbone: bool) -> None:
    loaded = load_model(outcome.name, num_classes=1000, seed=0)
    own = loaded.preprocessing
    preprocessing = Preprocessing(size or own.height, size or own.width, mean=own.mean, std=own.std)
    outcome.size = (preprocessing.height, preprocessing.width)
    images = sample_images(preprocessing)
    prepare(loaded.model, torch.cat(as_images(images, preprocessing)).float())
    dual = DualBranch(loaded.model, input_size=outcome.size).eval()
    (target,) = dual.targets
    outcome.branch_layer, outcome.target_layer = dual.branch.layer, target.layer
    outcome.cam = target.layout.shape
    outcome.head = head_in_words(dual)
    _compare(outcome, dual, BackendSetup(dual, preprocessing, backbone), images, preprocessing)


def prepare(model: nn.Module, images: Tensor) -> None:
    """Makes a freshly initialised network behave like a trained one, in place.

    Parameters that begin at zero or next to it (last normalisations, layer scales, heads,
    gates) would make gradients zero and a comparison empty: they are drawn from a normal
    distribution of deviation 0.02, or 0.1 for vectors other than biases. The running
    statistics of batch normalisations become those of `images`.

    Args:
        model: in inference mode, and left in it.
        images: float32 [B, 3, H, W], normalised.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_bias = value.ndim == 1 and "bias" in name.rpartition(".")[2]
            if not is_bias and float(value.abs().max()) <= 1e-3:
                deviation = 0.1 if value.squeeze().ndim <= 1 else 0.02
                value.copy_(deviation * torch.randn(value.shape, generator=generator))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        if norms:
            model(images)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = momentum


class Heatmaps(nn.Module):
    """The artifact's graph with the CAMs of several methods."""

    def __init__(self, graphs: list[ArtifactGraph], backbone: bool) -> None:
        super().__init__()
        self.graphs, self.backbone = nn.ModuleList(graphs), backbone

    def front(self, image: Tensor) -> Tensor:
        """The image to the value that the maps come from."""
        first: Any = self.graphs[0]
        entry: Tensor = first.front(first.normalise(image))
        return entry

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """From the image, or from `front` of it: logits, class ids, CAMs of each method."""
        entry = self.front(x) if self.backbone else x
        first: Any = self.graphs[0]
        logits = first.cams.softmax_logits(first.cams.weight_graph.run(entry))
        ids = first.select(logits, None)
        parts: list[Any] = [graph.cams for graph in self.graphs]  # type: ignore[union-attr]
        values = [part.weight_graph.run(entry) for part in parts]
        cams = [p.explain(v, ids, logits)["cams"] for p, v in zip(parts, values, strict=True)]
        return (logits, ids, *cams)


class BackendSetup:
    """The exported graph in ONNX Runtime."""

    def __init__(self, dual: DualBranch, preprocessing: Preprocessing, backbone: bool) -> None:
        """Exports it.

        Raises:
            ExportError: it can't be, or ONNX Runtime refuses it.
        """
        parts = [ArtifactGraph(CamGraph(dual, _options(m)), preprocessing) for m in METHODS]
        self.preprocessing, self.backbone = preprocessing, backbone
        self.heatmaps = Heatmaps(parts, backbone).eval()
        self.names = ["logits", "class_ids", *METHODS]
        example = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)
        if not backbone:
            example = torch.zeros(2, *parts[0].cams.cut.shape)
        model = to_onnx(
            self.heatmaps, GraphSignature({"x": example}, self.names, {"x": {0: "batch"}}), OPSET
        )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's own exceptions share no base
            raise ExportError(f"ONNX Runtime refuses the exported graph: {exc}") from exc

    def run(self, images: Array) -> dict[str, Array]:
        """The outputs for uint8 [B, H, W, 3], by name."""
        x = feed(images, self.preprocessing)
        if not self.backbone:
            with torch.no_grad():
                x = self.heatmaps.front(torch.from_numpy(x)).numpy()
        try:
            return dict(zip(self.names, self.session.run(self.names, {"x": x}), strict=True))
        except Exception as exc:  # as above
            raise ExportError(f"ONNX Runtime fails on a batch of {len(x)}: {exc}") from exc


def _options(method: str) -> ExportOptions:
    return ExportOptions(
        method=method,
        branch="softmax",
        purpose="localise",
        has_sigmoid=False,
        tolerance=TOLERANCE,
    )


def _compare(
    outcome: Outcome,
    dual: DualBranch,
    setup: BackendSetup,
    images: Array,
    preprocessing: Preprocessing,
) -> None:
    twin = in_double(dual).eval()
    outcome.errors = dict.fromkeys(METHODS, 0.0)
    got = [(part, setup.run(images[part])) for part in BATCHES]
    for index, image in enumerate(as_images(images, preprocessing)):
        rows = [(out, part.index(index)) for part, out in got if index in part]
        if not rows:
            continue
        # hirescam's weights are the gradient itself: one pass serves both methods.
        known = Reference(twin, image, _options("hirescam"))
        jumps: dict[str, bool] = {}
        for out, row in rows:
            ids = torch.from_numpy(out["class_ids"][row : row + 1])
            _check_class(outcome, known.logits, out["logits"][row], ids, dual, image)
            for method, want in _cams(known.outputs(ids)).items():
                error = compare(out[method][row : row + 1], want, 0.0).max_rel
                outcome.cams += 1
                outcome.empty += int(not want.any() and error == 0)
                if not error <= TOLERANCE and method not in jumps:
                    reference = Reference(twin, image, _options(method))
                    jumps[method] = is_unstable(reference, ids, logit_floors([reference]))
                if not error <= TOLERANCE and jumps[method]:
                    outcome.unstable += 1
                else:
                    # max() would lose a NaN.
                    outcome.errors[method] = float(np.maximum(outcome.errors[method], error))
    _judge(outcome)


def _cams(known: Mapping[str, Tensor]) -> dict[str, Array]:
    features, gradient = known["features"], known["cam_weights"]
    found = {}
    for name in METHODS:
        method = method_of(name)
        weights = method.weights(features, Gradient(gradient, math.prod(features.shape[2:])))
        found[name] = combine(weights, features, method.clamps).numpy()
    return found


def _judge(outcome: Outcome) -> None:
    worst = max(outcome.errors.values(), key=lambda e: math.inf if math.isnan(e) else e)
    if outcome.reason:
        outcome.status = "differs"
    elif not worst <= TOLERANCE:
        outcome.status = "differs"
        outcome.reason = f"a CAM differs from autograd's by {worst:.2g} of its maximum"
    elif 2 * outcome.unstable > outcome.cams:
        outcome.status = "unstable"
        outcome.reason = (
            f"the gradient jumps within rounding on {outcome.unstable} of {outcome.cams} CAMs"
        )
    elif outcome.empty == outcome.cams:
        outcome.status = "empty"
        outcome.reason = "every CAM is zero, which tests nothing"
    else:
        outcome.status = "agrees"


def _check_class(
    outcome: Outcome, want: Tensor, got: Array, ids: Tensor, dual: DualBranch, image: Tensor
) -> None:
    error = compare(got[None], want.numpy(), 0.0).max_rel
    if not error <= TOLERANCE:
        with torch.no_grad():
            own = dual(image.float()).logits
        inherent = compare(own.numpy(), want.numpy(), 0.0).max_rel
        outcome.reason = (
            f"the logits differ by {error:.2g} of their largest; PyTorch's own in float32 differ "
            f"from those in float64 by {inherent:.2g}"
        )
    near = float(want.max() - want.gather(1, ids)) <= 2 * TOLERANCE * float(want.abs().max())
    if not near:
        outcome.reason = f"the graph chose class {int(ids)}, PyTorch {int(want.argmax())}"


_WORDS = {
    "conv2d": "conv", "convolution": "conv", "linear": "linear", "addmm": "linear", "mm": "linear",
    "batch_norm": "norm", "_native_batch_norm_legit_no_training": "norm", "layer_norm": "norm",
    "native_layer_norm": "norm", "group_norm": "norm", "native_group_norm": "norm",
    "rms_norm": "norm", "_fused_rms_norm": "norm", "linalg_vector_norm": "norm",
    "mean": "pool", "adaptive_avg_pool2d": "pool", "_adaptive_avg_pool2d": "pool",
    "adaptive_avg_pool1d": "pool", "avg_pool2d": "pool",
    "amax": "max pool", "max_pool2d": "max pool", "max_pool2d_with_indices": "max pool",
    "adaptive_max_pool2d": "max pool",
    "scaled_dot_product_attention": "attention", "softmax": "attention", "_softmax": "attention",
    "einsum": "attention",
    "relu": "act", "gelu": "act", "hardswish": "act", "silu": "act", "tanh": "act",
    "sigmoid": "act", "hardsigmoid": "act", "relu6": "act", "hardtanh": "act",
    "leaky_relu": "act", "elu": "act",
}  # fmt: skip


def head_in_words(dual: DualBranch) -> str:
    """The kind of a head, by its operators from the branch layer's value to the logits.

    "pool + linear", "conv + pool", "norm + pool + linear", "flatten + MLP", "class token +
    linear", "attention pool + linear", ...
    """
    graph = dual.softmax_head.neck.graph.nodes, dual.softmax_head.classifier.graph.nodes
    steps: list[str] = []
    for node in (n for part in graph for n in part if n.op == "call_function"):
        word = _word(node, dual.branch.layout.kind)
        if word and (not steps or steps[-1] != word):
            steps.append(word)
    if "attention" in steps:
        # What is around the attention belongs to it, up to the last linear layer.
        tail = ["linear"] if steps[-1] == "linear" else []
        first = steps.index("attention")
        front = ["class token"] if "class token" in steps[:first] else []
        return " + ".join([*front, "attention", *tail])
    if not {"pool", "max pool", "class token"} & set(steps):
        steps.insert(0, "flatten")
    text = " + ".join(steps)
    while "linear + act + linear" in text or "MLP + act + linear" in text:
        text = text.replace("linear + act + linear", "MLP").replace("MLP + act + linear", "MLP")
    return text


def _word(node: fx.Node, kind: str) -> str | None:
    name = operator_name(node)
    if name in ("select", "slice") and kind == "tokens":
        before, after = (_tokens(n) for n in (node.args[0], node))
        # One token of several: the class token. Several of them: only prefixes left out.
        return "class token" if before != after and after in (None, 1) else None
    return _WORDS.get(name)


def _tokens(node: Any) -> int | None:
    value = node.meta.get("val")
    return int(value.shape[1]) if isinstance(value, Tensor) and value.ndim == 3 else None
