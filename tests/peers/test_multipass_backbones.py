"""The methods of several passes against the package grad-cam, on networks of many families.

The networks are narrow and shallow, as there is a pass for every channel. PyTorch runs them
as a backend, so that only what the runtime does with them is compared. Where the definitions
differ, the difference is taken out on one side and named: grad-cam's masks are enlarged with
aligned corners (Score-CAM), its features are centred and their sign is left to chance
(Eigen-CAM), and features that can be negative are ablated with a large negative number
instead of 0 (Ablation-CAM).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from tests.support.paths import DATA

pytest.importorskip("pytorch_grad_cam")

from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import UsageError
from sigcam.core.spec import (
    ClassSelection,
    Preprocessing,
    Source,
    Spec,
)
from sigcam.images.decode import read_image
from sigcam.images.preprocess import prepare
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session
from tests.support import peer_heatmaps as peers
from tests.support.torch_backend import TorchBackend, head_graph_of

pytestmark = pytest.mark.slow

PHOTOGRAPH = DATA / "pets" / "images" / "Abyssinian_1.jpg"
TOLERANCE = 1e-3
SIDE = 64
"""N passes through the whole network for each map: at 224 they would take long."""
SPREAD = 6.0
FADES = 1e-6
"""grad-cam adds 1e-7 to the CAM's maximum before it divides by it."""


def shufflenet_v2(size=SIDE):
    net = torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 64], peers.CLASSES)
    return peers.Peer(net, [net.conv5])


def regnet_y(size=SIDE):
    stages = torchvision.models.regnet.BlockParams.from_init_params(
        depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25
    )
    net = torchvision.models.RegNet(stages, peers.CLASSES, stem_width=16)
    return peers.Peer(net, [net.trunk_output])


BACKBONES = (peers.resnet, peers.vgg, peers.mobilenet_v3, peers.vit)
# Ablation-CAM is one definition on features that a ReLU made.
AFTER_RELU = (peers.resnet, peers.densenet, shufflenet_v2, regnet_y)


@pytest.fixture(autouse=True)
def _quiet(capfd):
    yield
    capfd.readouterr()  # grad-cam shows a bar for each class


class Network:
    """A backbone as grad-cam sees it, and a Session whose backend is PyTorch."""

    def __init__(self, build, centred=False):
        self.peer = peers.make(build, SIDE)
        self.centred = centred
        self.preprocessing = Preprocessing(
            SIDE, SIDE, "stretch", mean=peers.IMAGENET.mean, std=peers.IMAGENET.std,
            layout="float32_nchw",
        )  # fmt: skip
        self._spread_logits()
        logits, value = self.features(self.tensor(self.image()))
        self.shape, self.classes = tuple(value.shape[1:]), logits.shape[1]

    def _spread_logits(self):
        """Random heads give all classes nearly one score, and so all channels one weight."""
        last = [m for m in self.peer.model.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(SPREAD / self.peer.model(self.tensor(self.image())).std())

    @torch.no_grad()
    def features(self, image):
        """Logits [B, C] and the target layer's value as a CAM [B, N, h, w]."""
        kept = []
        hook = self.peer.layers[0].register_forward_hook(lambda *call: kept.append(call[2]))
        try:
            logits = self.peer.model(image)
        finally:
            hook.remove()
        value = kept[0] if self.peer.reshape is None else self.peer.reshape(kept[0])
        if self.centred:
            value = value - value.mean((2, 3), keepdim=True)
        return logits, value.clone()

    def session(self):
        """Explains any class from the softmax branch."""
        N, h, w = self.shape
        ids, scores = ("int64", (None, None)), ("float32", (None, self.classes))
        features = ("float32", (None, N, h, w))

        def run(image, class_ids):
            logits, value = self.features(image)
            weights = torch.zeros(len(image), class_ids.shape[1], N)
            return {
                "logits": logits, "class_ids_out": class_ids, "features": value,
                "cam_weights": weights,
            }  # fmt: skip

        artifact = TorchBackend(
            {"image": ("float32", (None, 3, SIDE, SIDE)), "class_ids": ids},
            {
                "logits": scores, "class_ids_out": ids, "features": features,
                "cam_weights": ("float32", (None, None, N)),
            },
            run,
        )  # fmt: skip
        head = head_graph_of(self._head) if self.peer.reshape is None else None
        spec = Spec(
            method="cam", branch="softmax", nwc=False, target_layers=("target",), profile="split",
            classes=ClassSelection("input"), preprocessing=self.preprocessing,
            num_classes=self.classes, feature_shapes=(self.shape,), source=Source("net", "0"),
            head_input="features" if head else None,
        )  # fmt: skip
        return Session(ExportedModel(spec, artifact, head), batch_size=16)

    def _head(self):
        N, h, w = self.shape
        ids = ("int64", (None, None))
        head = DualBranch(self.peer.model, input_size=SIDE).softmax_head

        def run(features, class_ids):
            scores = head(features).gather(1, class_ids)
            return {"scores": scores, "cams": torch.zeros(*class_ids.shape, h, w)}

        return TorchBackend(
            {"features": ("float32", (None, N, h, w)), "class_ids": ids},
            {"scores": ("float32", (None, None)), "cams": ("float32", (None, None, h, w))},
            run,
        )

    def image(self):
        """uint8 [SIDE, SIDE, 3]: a photograph where there are some, or a made-up one."""
        if PHOTOGRAPH.is_file():
            return prepare(read_image(PHOTOGRAPH), Preprocessing(SIDE, SIDE, "stretch"))[0]
        smooth = peers.smooth_images(1, SIDE)[0].permute(1, 2, 0)
        return (smooth * 60 + 120).clamp(0, 255).byte().contiguous().numpy()

    def tensor(self, image):
        """As the backend gets it, [1, 3, H, W]."""
        return torch.from_numpy(prepare(image, self.preprocessing)[0])[None]

    def theirs(self, kind, image, class_id):
        with kind(self.peer.model, self.peer.layers, self.peer.reshape) as cam:
            cam.batch_size = 16
            return cam(self.tensor(image), [ClassifierOutputTarget(class_id)])[0]


each_backbone = pytest.mark.parametrize("build", BACKBONES, ids=lambda build: build.__name__)


@each_backbone
def test_scorecam_agrees_but_for_how_masks_are_enlarged(build, monkeypatch):
    network = Network(build)
    image = network.image()
    logits, features = network.features(network.tensor(image))
    class_id = int(logits[0].argmax())
    with network.session() as session:
        [one] = session.explain(image, classes=class_id, method="scorecam")
    halves = functools.partial(nn.Upsample, mode="bilinear", align_corners=False)
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", halves)
    theirs = network.theirs(ScoreCAM, image, class_id)
    assert one.valid
    assert one.cam.max() > FADES
    np.testing.assert_allclose(one.heatmap, theirs, rtol=0, atol=TOLERANCE)
    equal = peers.scaled(np.maximum(features[0].mean(0).numpy(), 0))
    # Equal weights would agree with anything.
    assert np.abs(peers.scaled(one.cam) - equal).max() > 10 * TOLERANCE


@pytest.mark.parametrize("build", AFTER_RELU, ids=lambda build: build.__name__)
def test_ablationcam_agrees_after_a_relu(build):
    network = Network(build)
    image = network.image()
    logits, features = network.features(network.tensor(image))
    class_id = int(logits[0].argmax())
    assert logits[0, class_id] > 0.1  # grad-cam divides by s, we by |s|
    assert features.min() == 0
    with network.session() as session:
        [one] = session.explain(image, classes=class_id, method="ablationcam")
    assert one.valid
    theirs = network.theirs(AblationCAM, image, class_id)
    np.testing.assert_allclose(one.heatmap, theirs, rtol=0, atol=TOLERANCE)


def test_ablationcam_differs_where_features_can_be_negative():
    network = Network(peers.mobilenet_v3)
    image = network.image()
    logits, features = network.features(network.tensor(image))
    assert features.min() < 0
    class_id = int(logits[0].argmax())
    with network.session() as session:
        [one] = session.explain(image, classes=class_id, method="ablationcam")
    assert np.abs(one.heatmap - network.theirs(AblationCAM, image, class_id)).max() > 0.05


def test_ablationcam_refuses_a_transformer_whose_head_takes_more_than_the_features():
    network = Network(peers.vit)
    with network.session() as session, pytest.raises(UsageError, match="head"):
        session.explain(network.image(), classes=0, method="ablationcam")


@each_backbone
def test_eigencam_agrees_on_centred_features_up_to_the_sign(build):
    network = Network(build, centred=True)
    image = network.image()
    with network.session() as session:
        [one] = session.explain(image, classes=0, method="eigencam")
    [theirs] = get_2d_projection(network.features(network.tensor(image))[1].numpy())
    gaps = [np.abs(np.maximum(p, 0) - one.cam).max() for p in (theirs, -theirs)]
    assert min(gaps) <= TOLERANCE * np.abs(theirs).max() < max(gaps)
