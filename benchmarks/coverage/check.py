"""One network's artifact: a whole file, exported, checked and written as a user's is.

The network gets random weights; `export_artifact` splits it, checks where the target layer's
grid lies in the image and that its gradients are the model's own, makes one ONNX graph of the
whole of it, compares that in ONNX Runtime with PyTorch's autograd in float64, and writes the
file. All of that must go well.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.coverage import hugging_face
from benchmarks.coverage.heads import head_in_words
from benchmarks.coverage.names import Network
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.classifier.zoo.base import LoadedModel
from sigcam.core.errors import ParityError, SigcamError
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.parity.inputs import as_images, feed, sample_images

METHODS = ("gradcam", "layercam")
NUM_CLASSES = 1000
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass
class Outcome:
    """What became of one network with one method.

    Attributes:
        name: the network's, and the target layer's where one is named.
        method: the method of the artifact.
        status: "agrees": the file was written, so every output is within the tolerance on every
            image that counts; "differs": parity refused it; "empty": every CAM is zero, so that
            nothing was tested; "refused": by another error of sigcam's; "failed": by an error
            that isn't; "late": not done in time.
        reason: of all but "agrees".
        size: input (H, W).
        head: its operators in words.
        branch_layer, target_layer: as found, or as named.
        cam: (N, h, w) of the target layer.
        errors: output to its worst error as a share of that output's largest value.
        left_out: images that don't count, as the definition jumps within rounding.
        empty: images whose CAM is zero everywhere, rightly.
        megabytes: of the file.
        seconds: of wall time.
        packages: that ran it, with their versions.
    """

    name: str
    method: str = METHODS[0]
    status: str = "refused"
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    head: str = ""
    branch_layer: str = ""
    target_layer: str = ""
    cam: tuple[int, int, int] = (0, 0, 0)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: int = 0
    empty: int = 0
    megabytes: float = 0.0
    seconds: float = 0.0
    packages: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def check(network: Network, method: str = METHODS[0]) -> Outcome:
    """Exports one network; never raises for a network that fails.

    Args:
        network: which one, and what is named of it.
        method: the method of the artifact.
    """
    outcome = Outcome(network.name, method, packages=_packages())
    start = time.perf_counter()
    try:
        _check(outcome, network)
    except SigcamError as exc:
        outcome.status = "differs" if isinstance(exc, ParityError) else "refused"
        outcome.reason = f"{type(exc).__name__}: {exc}"
    except Exception as exc:  # a fault of ours: the run must go on, the table must show it
        outcome.status = "failed"
        outcome.reason = f"{type(exc).__name__}: {exc}"
    lines = (" ".join(one.split()) for one in outcome.reason.strip().split("\n"))
    outcome.reason = "; ".join(lines)[:600]  # those after the first are parity's table
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _check(outcome: Outcome, network: Network) -> None:
    loaded = _load(network)
    own = loaded.preprocessing
    side = network.size
    preprocessing = Preprocessing(side or own.height, side or own.width, mean=own.mean, std=own.std)
    outcome.size = (preprocessing.height, preprocessing.width)
    prepare(loaded.model, torch.cat(as_images(sample_images(preprocessing), preprocessing)).float())
    targets = (network.target_layer,) if network.target_layer else ()
    dual = DualBranch(loaded.model, input_size=outcome.size, target_layers=targets).eval()
    (target,) = dual.targets
    outcome.branch_layer, outcome.target_layer = dual.branch.layer, target.layer
    outcome.cam = target.layout.shape
    outcome.head = head_in_words(dual)
    options = ExportOptions(
        method=outcome.method,
        branch="softmax",
        purpose="localise",
        has_sigmoid=False,
        preprocessing=preprocessing,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        report = export_artifact(dual, path, options).parity
        assert report is not None
        outcome.errors = {name: error.max_rel for name, error in report.outputs.items()}
        outcome.left_out, outcome.empty = report.left_out, report.empty
        outcome.megabytes = round(sum(f.stat().st_size for f in Path(folder).iterdir()) / 1e6, 1)
        _run(path, preprocessing, dual)
    images = len(sample_images(preprocessing))
    outcome.status = "empty" if outcome.empty >= images else "agrees"
    outcome.reason = "every CAM is zero, which tests nothing" if outcome.status == "empty" else ""


def _packages() -> str:
    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # not every network needs each
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _load(network: Network) -> LoadedModel:
    if hugging_face.is_hugging_face(network.name):
        return hugging_face.load(network.name)
    loaded = load_model(network.arch, num_classes=NUM_CLASSES, seed=0)
    if network.size is None or not network.arch.startswith("timm/"):
        return loaded
    import timm

    name = network.arch.removeprefix("timm/")
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        return loaded
    # The position embedding is made for one size, which load_model has no option for.
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=NUM_CLASSES, img_size=network.size).eval()
    return LoadedModel(model, loaded.architecture, loaded.preprocessing, ())


def _run(path: Path, preprocessing: Preprocessing, dual: DualBranch) -> None:
    """Runs the file as it was written, on two images, once more."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    images = sample_images(preprocessing)[:2]
    logits, cams = session.run(["logits", "cams"], {"image": feed(images, preprocessing)})
    (target,) = dual.targets
    if logits.shape != (2, dual.num_classes) or cams.shape != (2, 1, *target.layout.shape[1:]):
        raise ValueError(f"the file gives logits {logits.shape} and CAMs {cams.shape}")
    if not (np.isfinite(logits).all() and np.isfinite(cams).all()):
        raise ValueError("the file gives NaN or infinity")


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
