"""Maps of the same network and classes by the exported graph and by the package grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

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
from sigcam.export.backward.trace import trace_gradient
from sigcam.export.modules import CamGraph
from sigcam.export.onnx_model import GraphSignature, to_onnx
from sigcam.export.options import ExportOptions
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


# Narrow and shallow forms of each architecture: every operator costs the exporter some 20 ms,
# and what the methods meet is how a network ends. benchmarks/coverage goes through whole
# networks, with every method.
CLASSES = 40


def resnet(size=224):
    """Ends in a ReLU, global average pooling and a linear layer."""
    net = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, [1, 1, 1, 1], CLASSES, stem_width=16,
        channels=(16, 24, 32, 64),
    )  # fmt: skip
    return Peer(net, [net.layer4[-1]])


def vgg(size=224):
    """Ends in flattened features and two hidden layers."""
    convs = torchvision.models.vgg.make_layers([16, "M", 24, "M", 32, "M", 48, "M", 64, "M"])
    net = torchvision.models.VGG(convs, CLASSES, init_weights=False)
    for name, inside, outside in (("0", 64 * 49, 96), ("3", 96, 64), ("6", 64, CLASSES)):
        setattr(net.classifier, name, nn.Linear(inside, outside))
    return Peer(net, [net.features[-1]])


def mobilenet_v3(size=224):
    """Ends in a hard swish, global average pooling and a hidden layer."""
    kind = torchvision.models.mobilenetv3.InvertedResidualConfig
    blocks = [
        kind(16, 3, 16, 16, True, "RE", 2, 1, 1.0), kind(16, 5, 64, 24, True, "HS", 2, 1, 1.0)
    ]  # fmt: skip
    net = torchvision.models.MobileNetV3(blocks, last_channel=64, num_classes=CLASSES)
    return Peer(net, [net.features[-1]])


def densenet(size=224):
    """Ends in a module for the ReLU, a mean and a linear layer."""
    net = torchvision.models.DenseNet(
        growth_rate=16, block_config=(2, 2), num_init_features=32, num_classes=CLASSES
    )
    net = DenseNet(net)
    return Peer(net, [net.last])


def vit(size=224):
    """Ends in a block of attention and a linear layer on the class token."""
    net = timm.models.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES
    )
    side = size // 16

    def cam(tokens):
        return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)

    return Peer(net, [net.blocks[-1].norm1], reshape=cam)


NETWORKS = {one.__name__: one for one in (resnet, vgg, mobilenet_v3, densenet, vit)}


def trained():
    """EfficientNet-Lite0 with its ImageNet weights."""
    loaded = load_model("efficientnet_lite0", "DEFAULT")
    net = loaded.model
    # The network calls one activation module many times; grad-cam would take its first call.
    last = nn.Identity()
    net._avg_pooling = nn.Sequential(last, net._avg_pooling)
    _freeze(net)
    return Peer(net, [last], preprocessing=loaded.preprocessing)


def make(build, size=224):
    """A network with seeded random weights that keep its activations at a usual size."""
    torch.manual_seed(0)
    peer = build(size)
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
    return peer


def _freeze(model):
    """Spares grad-cam the gradients of weights far below the target layer."""
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) * 6 // 10]:
        parameter.requires_grad_(False)


class _Once:
    """Calls a function once for the same arguments."""

    def __init__(self, function):
        self.function, self.found = function, {}

    def __call__(self, *arguments):
        key = tuple(map(id, arguments))
        if key not in self.found:  # the arguments are kept, or another might get the same id
            self.found[key] = arguments, self.function(*arguments)
        return self.found[key][1]


class _AllMethods(nn.Module):
    """CAMs of all methods from the entry of the tail: forward operators only.

    What the methods have in common is in the graph once: the values of the forward pass, and
    the gradient in each of its forms. Repeated for each method it would show the same again,
    and take the exporter most of its time.
    """

    def __init__(self, dual, names, similar):
        super().__init__()
        options = {"finercam": {"gamma": GAMMA, "similar": similar}}
        traced = []

        def trace_once(*arguments):
            if not traced:
                traced.append(trace_gradient(*arguments))
            return traced[0]

        with mock.patch("sigcam.export.cam.trace_gradient", trace_once):
            self.cams = nn.ModuleList(
                CamGraph(
                    dual,
                    ExportOptions(
                        method=name,
                        branch="softmax",
                        nwc=False,
                        has_sigmoid=False,
                        method_options=options.get(name, {}),
                    ),
                )
                for name in names
            )
        self.once = {}
        for one in self.cams:
            graph, head = one.weight_graph, one.weight_graph.head
            form = "" if graph.closed_form else graph.backward_part.code
            self._share("values", graph, "run")
            self._share("logits", one, "softmax_logits")
            self._share("rows", head, "rows")
            self._share("scores", head, "scores")
            self._share(f"gradient {form}", graph, "_gradients")

    def _share(self, key, owner, name):
        setattr(owner, name, self.once.setdefault(key, _Once(getattr(owner, name))))

    def forward(self, entry, class_ids):
        for part in self.once.values():
            part.found.clear()
        found = []
        for one in self.cams:
            values = one.weight_graph.run(entry)
            found.append(one.explain(values, class_ids, one.softmax_logits(values))["cams"])
        return tuple(found)


class Ours:
    """Logits and CAMs of a network: its front by PyTorch, all else by one ONNX graph.

    Exporting the front takes most of the time of an export and says nothing about methods.
    """

    def __init__(self, peer, names=tuple(METHODS), size=224, similar=1):
        dual = DualBranch(peer.model, input_size=size, target_layers=peer.target_layers)
        self.names, self.dual = names, dual
        graph = _AllMethods(dual, names, similar)
        cut = graph.cams[0].cut
        self.front = cut.front
        inputs = {
            "entry": torch.zeros(2, *cut.shape),
            "class_ids": torch.zeros(2, 3, dtype=torch.int64),
        }
        dynamic = {"entry": {0: "batch"}, "class_ids": {0: "batch", 1: "classes"}}
        model = to_onnx(graph, GraphSignature(inputs, list(names), dynamic))
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
