"""The gradient methods against the package grad-cam, where definitions agree.

Softmax branch, no clamping (grad-cam has none), the same class. The last tests show where
the definitions differ; docs/methods.md says why. The networks are small ones of each
architecture, and one that is trained; `python -m benchmarks.coverage.run` goes through whole
networks of every family.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.paths import DATA

pytest.importorskip("pytorch_grad_cam")

from pytorch_grad_cam import FinerCAM, GradCAM
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputTarget,
    FinerWeightedTarget,
)

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact
from sigcam.images.decode import read_image
from sigcam.images.preprocess import prepare
from sigcam.runtime.session import load
from tests.support import peer_heatmaps as peers

pytestmark = pytest.mark.slow

PHOTOGRAPHS = ["pets/images/Abyssinian_1.jpg", "imagenet_samples/images/n01440764.jpg"]
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=[*peers.NETWORKS, "efficientnet_lite0"])
def network(request):
    """A network and our graph of it; the last one with its trained weights."""
    name = request.param
    is_trained = name == "efficientnet_lite0"
    peer = peers.trained() if is_trained else peers.make(peers.NETWORKS[name])
    return peer, peers.Ours(peer)


def check(network, images):
    """All methods, for the class predicted on the first image and another on the second."""
    peer, ours = network
    valid = 0
    for index, image in enumerate(images.split(1)):
        logits = ours.logits(image)
        class_id = int(np.argsort(-logits)[len(logits) // 2 * index])
        cams = ours.cams(image, [class_id])
        for method in peers.METHODS:
            [cam] = cams[method]
            their_heatmap, their_cam = peers.theirs(peer, method, image, class_id, logits)
            for got, want in (
                (peers.scaled(cam), peers.scaled(their_cam)),
                (peers.enlarged(cam, 224), their_heatmap),
            ):
                np.testing.assert_allclose(
                    got, want, rtol=0, atol=TOLERANCE, err_msg=f"{method}, image {index}"
                )
            valid += bool(peers.scaled(cam).any())
    assert valid >= 10  # zeros on both sides would show nothing


def test_maps_agree_on_random_images(network):
    check(network, peers.smooth_images(2))


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the images in {DATA.parent.name}/data")
def test_maps_agree_on_photographs(network):
    preprocessing = dataclasses.replace(network[0].preprocessing, layout="float32_nchw")
    tensors = [prepare(read_image(DATA / name), preprocessing)[0] for name in PHOTOGRAPHS]
    check(network, torch.from_numpy(np.stack(tensors)))


def test_a_users_way_to_the_map_agrees(tmp_path):
    """The artifact by the Session, an image of the input's size, against grad-cam."""
    peer = peers.make(peers.resnet)
    preprocessing = dataclasses.replace(peer.preprocessing, rule="stretch", resize=None)
    pixels = (peers.smooth_images(1)[0] * 60 + 120).clamp(0, 255).byte()
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    export_artifact(
        DualBranch(peer.model),
        tmp_path / "model.onnx",
        ExportOptions(
            method="layercam",
            branch="softmax",
            has_sigmoid=False,
            classes=ClassSelection("input"),
            preprocessing=preprocessing,
        ),
    )
    with load(tmp_path / "model.onnx", spinning=False) as session:
        found = session.explain(image, classes=[28, 7])
    as_floats = dataclasses.replace(preprocessing, layout="float32_nchw")
    tensor = torch.from_numpy(prepare(image, as_floats)[0])[None]
    for one in found:
        assert one.valid
        full, _ = peers.theirs(peer, "layercam", tensor, one.class_id, None)
        np.testing.assert_allclose(one.heatmap, full, rtol=0, atol=TOLERANCE)


SIZE = 32


class Small(nn.Module):
    """Two convolutions and a head with a hidden layer; the last ReLU is a function."""

    in_place = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Conv2d(8, 12, 3, 2, 1)
        self.third = nn.Conv2d(12, 12, 3, 1, 1)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9))
        self.eval()

    def forward(self, x):
        x = nn.functional.relu(self.second(self.first(x)))
        x = nn.functional.relu(self.third(x), inplace=self.in_place)
        return self.head(x.mean((2, 3)))


class InPlace(Small):
    """The same function, the last ReLU in place."""

    in_place = True


def small(net, *names, methods=("gradcam",), **options):
    """A `Small` and our graph of it, with the target layers of these names."""
    model = net()
    layers = [model.get_submodule(name) for name in names]
    peer = peers.Peer(model, layers, target_layers=names)
    return peer, peers.Ours(peer, methods, SIZE, **options)


@pytest.fixture(scope="module")
def one_layer():
    return small(Small, "third", methods=("gradcam", "finercam"), similar=3)


def gradcam(peer, image, target):
    """grad-cam's map [H, W]."""
    with GradCAM(peer.model, peer.layers) as peer_method:
        return peer_method(input_tensor=image, targets=[target])[0]


def distance(cam, their_heatmap):
    return np.abs(peers.enlarged(cam, SIZE) - their_heatmap).max()


def test_an_operation_in_place_changes_the_features_of_grad_cam_but_not_ours(one_layer):
    image = peers.smooth_images(1, SIZE)
    heatmaps = {}
    for net, (peer, ours) in ((Small, one_layer), (InPlace, small(InPlace, "third"))):
        [cam] = ours.cams(image, [0])["gradcam"]
        heatmaps[net] = cam, gradcam(peer, image, ClassifierOutputTarget(0))
    np.testing.assert_allclose(*(cam for cam, _ in heatmaps.values()), rtol=1e-5, atol=1e-7)
    assert distance(*heatmaps[Small]) < TOLERANCE
    assert distance(*heatmaps[InPlace]) > 0.05


def test_finercam_weighs_similar_classes_alike_and_grad_cam_by_probability(one_layer):
    peer, ours = one_layer
    image = 3 * peers.smooth_images(1, SIZE)
    logits = ours.logits(image)
    class_id = int(logits.argmax())
    [cam] = ours.cams(image, [class_id])["finercam"]
    others = peers.near(logits, class_id, 3)

    def plain_mean(output):
        return output[class_id] - peers.GAMMA * output[others].mean()

    assert distance(cam, gradcam(peer, image, plain_mean)) < TOLERANCE
    weighted = FinerWeightedTarget(class_id, others, peers.GAMMA)
    assert distance(cam, gradcam(peer, image, weighted)) > 2 * TOLERANCE
    with FinerCAM(peer.model, peer.layers) as peer_method:
        [theirs] = peer_method(input_tensor=image)
    assert distance(cam, theirs) > 0.05  # its strength is 1, not 0.6


def test_cams_of_one_size_are_fused_alike():
    peer, ours = small(Small, "second", "third")
    image = peers.smooth_images(1, SIZE)
    [cam] = ours.cams(image, [4])["gradcam"]
    assert distance(cam, gradcam(peer, image, ClassifierOutputTarget(4))) < TOLERANCE


def test_cams_of_several_sizes_are_enlarged_at_another_place():
    peer, ours = small(Small, "first.0", "third")
    image = peers.smooth_images(1, SIZE)
    [cam] = ours.cams(image, [4])["gradcam"]
    apart = distance(cam, gradcam(peer, image, ClassifierOutputTarget(4)))
    assert TOLERANCE < apart < 0.2
