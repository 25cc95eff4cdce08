"""Maps of the same network and classes by the exported graph and by the package grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytorch_grad_cam
import timm
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.core.spec import Preprocessing
from sigcam.export.modules import CamGraph
from sigcam.export.onnx_model import to_onnx
from sigcam.export.options import GraphOptions
from sigcam.images.preprocess import Axis, Placement
from sigcam.images.upsample import to_heatmap

GAMMA = 0.6
IMAGENET = Preprocessing(224, 224)

# Ours to theirs. For one similar class the two definitions of Finer-CAM are one.
METHODS = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "finercam": pytorch_grad_cam.FinerCAM,
}


@dataclass(frozen=True)
class Peer:
    """A network, the modules that grad-cam hooks, and its way from tokens to a CAM."""

    model: nn.Module
    layers: list[nn.Module]
    target_layers: tuple[str, ...] = ()
    reshape: Callable | None = None
    preprocessing: Preprocessing = IMAGENET


class DenseNet(nn.Module):
    """A torchvision DenseNet whose last ReLU is a module, as grad-cam's hooks need it.

    The ReLU of torchvision's own form is a function that works in place.
    """

    def __init__(self, net):
        super().__init__()
        self.features, self.last, self.classifier = net.features, nn.ReLU(), net.classifier

    def forward(self, x):
        return self.classifier(self.last(self.features(x)).mean((2, 3)))


def _resnet18():
    net = torchvision.models.resnet18()
    return Peer(net, [net.layer4[-1]])


def _vgg11():
    net = torchvision.models.vgg11()
    return Peer(net, [net.features[-1]])


def _mobilenet_v3_small():
    net = torchvision.models.mobilenet_v3_small()
    return Peer(net, [net.features[-1]])


def _densenet121():
    net = DenseNet(torchvision.models.densenet121())
    return Peer(net, [net.last])


def _vit_tiny():
    # Four of its twelve blocks: a map is made of the last one.
    net = timm.create_model("vit_tiny_patch16_224", depth=4)

    def cam(tokens):
        return tokens[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)

    return Peer(net, [net.blocks[-1].norm1], reshape=cam)


NETWORKS = {
    "resnet18": _resnet18,
    "vgg11": _vgg11,
    "mobilenet_v3_small": _mobilenet_v3_small,
    "densenet121": _densenet121,
    "vit_tiny_patch16_224": _vit_tiny,
}


def trained():
    """EfficientNet-Lite0 with its ImageNet weights."""
    loaded = load_model("efficientnet_lite0", "DEFAULT")
    net = loaded.model
    # The network calls one activation module many times; grad-cam would take its first call.
    last = nn.Identity()
    net._avg_pooling = nn.Sequential(last, net._avg_pooling)
    _freeze(net)
    return Peer(net, [last], preprocessing=loaded.preprocessing)


def make(name, build=None, size=224):
    """A network with seeded random weights that keep its activations at a usual size."""
    torch.manual_seed(0)
    peer = (build or NETWORKS[name])()
    with torch.no_grad():
        for parameter in peer.model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.05)
        # Random weights shrink what passes through them. Below 1e-7 grad-cam's maps fade.
        for module in peer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        peer.model.train()(smooth_images(8, size))
    peer.model.eval()
    _freeze(peer.model)
    return peer


def _freeze(model):
    """Spares grad-cam the gradients of weights far below the target layer."""
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) * 6 // 10]:
        parameter.requires_grad_(False)


class _AllMethods(nn.Module):
    """CAMs of all methods from the entry of the tail: forward operators only."""

    def __init__(self, dual, names, similar):
        super().__init__()
        options = {"finercam": {"gamma": GAMMA, "similar": similar}}
        self.heatmaps = nn.ModuleList(
            CamGraph(
                dual,
                GraphOptions(
                    method=name,
                    branch="softmax",
                    nwc=False,
                    has_sigmoid=False,
                    method_options=options.get(name, {}),
                ),
            )
            for name in names
        )

    def forward(self, entry, class_ids):
        found = []
        for one in self.heatmaps:
            state = one.evidence.run(entry)
            found.append(one.explain(state, class_ids, one.softmax_logits(state))["cams"])
        return tuple(found)


class Ours:
    """Logits and CAMs of a network: its front by PyTorch, all else by one ONNX graph.

    Exporting the front takes most of the time of an export and says nothing about methods.
    """

    def __init__(self, peer, names=tuple(METHODS), size=224, similar=1):
        dual = DualBranch(peer.model, input_size=size, target_layers=peer.target_layers)
        self.names, self.dual = names, dual
        graph = _AllMethods(dual, names, similar)
        cut = graph.heatmaps[0].cut
        self.front = cut.front
        inputs = {
            "entry": torch.zeros(2, *cut.shape),
            "class_ids": torch.zeros(2, 3, dtype=torch.int64),
        }
        dynamic = {"entry": {0: "batch"}, "class_ids": {0: "batch", 1: "classes"}}
        model = to_onnx(graph, inputs, dynamic, list(names), 18)
        options = ort.SessionOptions()
        # ONNX Runtime's threads would spin beside PyTorch's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @torch.no_grad()
    def logits(self, image):
        """[C] of one image [1, 3, H, W]."""
        return self.dual.softmax_head(self.dual.features(image))[0].numpy()

    @torch.no_grad()
    def cams(self, image, ids):
        """Method to [K, h, w]."""
        feeds = {"entry": self.front(image).numpy(), "class_ids": np.array([ids], np.int64)}
        found = self.session.run(list(self.names), feeds)
        return {name: cams[0] for name, cams in zip(self.names, found, strict=True)}


def theirs(peer, method, image, class_id, logits):
    """grad-cam's map [H, W] and its CAM of the first layer [h, w], for one image."""
    target = ClassifierOutputTarget(class_id)
    if method == "finercam":
        target = FinerWeightedTarget(class_id, near(logits, class_id, 1), GAMMA)
    with METHODS[method](peer.model, peer.layers, peer.reshape) as peer_method:
        [found] = peer_method(input_tensor=image, targets=[target])
        base = getattr(peer_method, "base_cam", peer_method)
        kept = base.activations_and_grads
        F, g = kept.activations[0].numpy(), kept.gradients[0].numpy()
        [cam] = base.get_cam_image(image, peer.layers[0], [target], F, g, False)
    return found, np.maximum(cam, 0)


def near(logits, class_id, count):
    """The classes whose logits [C] are nearest to that of `class_id`."""
    distance = np.abs(logits - logits[class_id])
    distance[class_id] = np.inf
    return [int(c) for c in np.argsort(distance)[:count]]


def scaled(values):
    """To [0, 1] by minimum and maximum; a constant gives zeros."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 1e-5 * np.abs(values).max() else 0 * values


def enlarged(cam, size):
    """Our map of a CAM at the network's input size."""
    axes = [Axis(size, 0, size, 1, 0, size, size)] * 2
    return to_heatmap(cam.astype(np.float32), Placement(*axes))[0]


def smooth_images(count, size=224):
    """Random images of a few colours' waves, normalised: float32 [count, 3, size, size]."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(5))
    fine = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (fine - 0.45) / 0.22
