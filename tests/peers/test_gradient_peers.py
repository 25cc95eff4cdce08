"""The gradient methods against the package grad-cam, where definitions agree.

Softmax branch, no clamping (grad-cam has none), the same class. The last tests show where
the definitions differ; docs/methods.md says why.
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
from sigcam.export import export_artifact
from sigcam.images.decode import read_image
from sigcam.images.preprocess import prepare
from sigcam.runtime.session import load
from tests.support import peer_maps as peers

PHOTOGRAPHS = ["pets/images/Abyssinian_1.jpg", "imagenet_samples/images/n01440764.jpg"]
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=[*peers.NETWORKS, "efficientnet_lite0"])
def network(request):
    """A network and our graph of it; the last one with its trained weights."""
    name = request.param
    peer = peers.trained() if name == "efficientnet_lite0" else peers.make(name)
    return peer, peers.Ours(peer)


def check(network, pictures):
    """All methods, for the class predicted on the first picture and another on the second."""
    peer, ours = network
    valid = 0
    for index, image in enumerate(pictures.split(1)):
        logits = ours.logits(image)
        class_id = int(np.argsort(-logits)[len(logits) // 2 * index])
        grids = ours.grids(image, [class_id])
        for method in peers.METHODS:
            [grid] = grids[method]
            their_map, their_grid = peers.theirs(peer, method, image, class_id, logits)
            for got, want in (
                (peers.scaled(grid), peers.scaled(their_grid)),
                (peers.enlarged(grid, 224), their_map),
            ):
                np.testing.assert_allclose(
                    got, want, rtol=0, atol=TOLERANCE, err_msg=f"{method}, picture {index}"
                )
            valid += bool(peers.scaled(grid).any())
    assert valid >= 10  # zeros on both sides would show nothing


def test_maps_agree_on_random_pictures(network):
    check(network, peers.smooth_pictures(2))


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the pictures in {DATA.parent.name}/data")
def test_maps_agree_on_photographs(network):
    geometry = dataclasses.replace(network[0].geometry, layout="float32_nchw")
    tensors = [prepare(read_image(DATA / name), geometry)[0] for name in PHOTOGRAPHS]
    check(network, torch.from_numpy(np.stack(tensors)))


def test_a_users_way_to_the_map_agrees(tmp_path):
    """The artifact by the Session, a picture of the input's size, against grad-cam."""
    peer = peers.trained()
    geometry = dataclasses.replace(peer.geometry, rule="stretch", resize=None)
    pixels = (peers.smooth_pictures(1)[0] * 60 + 120).clamp(0, 255).byte()
    picture = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    export_artifact(
        DualBranch(peer.model), tmp_path / "model.onnx", method="layercam", branch="softmax",
        has_sigmoid=False, classes=ClassSelection("input"), geometry=geometry,
    )  # fmt: skip
    with load(tmp_path / "model.onnx", spinning=False) as session:
        found = session.explain(picture, classes=[281, 7])
    as_floats = dataclasses.replace(geometry, layout="float32_nchw")
    tensor = torch.from_numpy(prepare(picture, as_floats)[0])[None]
    for one in found:
        assert one.valid
        full, _ = peers.theirs(peer, "layercam", tensor, one.class_id, None)
        np.testing.assert_allclose(one.map, full, rtol=0, atol=TOLERANCE)


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


def small(net, *names, method="gradcam", **options):
    """A `Small` and our graph of it, with the target layers of these names."""
    model = net()
    layers = [model.get_submodule(name) for name in names]
    peer = peers.Peer(model, layers, target_layers=names)
    return peer, peers.Ours(peer, (method,), SIZE, **options)


def gradcam(peer, image, target):
    """grad-cam's map [H, W]."""
    with GradCAM(peer.model, peer.layers) as cam:
        return cam(input_tensor=image, targets=[target])[0]


def distance(grid, their_map):
    return np.abs(peers.enlarged(grid, SIZE) - their_map).max()


def test_an_operation_in_place_changes_the_features_of_grad_cam_but_not_ours():
    image = peers.smooth_pictures(1, SIZE)
    maps = {}
    for net in (Small, InPlace):
        peer, ours = small(net, "third")
        [grid] = ours.grids(image, [0])["gradcam"]
        maps[net] = grid, gradcam(peer, image, ClassifierOutputTarget(0))
    np.testing.assert_allclose(*(grid for grid, _ in maps.values()), rtol=1e-5, atol=1e-7)
    assert distance(*maps[Small]) < TOLERANCE
    assert distance(*maps[InPlace]) > 0.05


def test_finercam_weighs_similar_classes_alike_and_grad_cam_by_probability():
    peer, ours = small(Small, "third", method="finercam", similar=3)
    image = 3 * peers.smooth_pictures(1, SIZE)
    logits = ours.logits(image)
    class_id = int(logits.argmax())
    [grid] = ours.grids(image, [class_id])["finercam"]
    others = peers.near(logits, class_id, 3)

    def plain_mean(output):
        return output[class_id] - peers.GAMMA * output[others].mean()

    assert distance(grid, gradcam(peer, image, plain_mean)) < TOLERANCE
    weighted = FinerWeightedTarget(class_id, others, peers.GAMMA)
    assert distance(grid, gradcam(peer, image, weighted)) > 2 * TOLERANCE
    with FinerCAM(peer.model, peer.layers) as cam:
        [theirs] = cam(input_tensor=image)
    assert distance(grid, theirs) > 0.05  # its strength is 1, not 0.6


def test_grids_of_one_size_are_fused_alike():
    peer, ours = small(Small, "second", "third")
    image = peers.smooth_pictures(1, SIZE)
    [grid] = ours.grids(image, [4])["gradcam"]
    assert distance(grid, gradcam(peer, image, ClassifierOutputTarget(4))) < TOLERANCE


def test_grids_of_several_sizes_are_enlarged_at_another_place():
    peer, ours = small(Small, "first.0", "third")
    image = peers.smooth_pictures(1, SIZE)
    [grid] = ours.grids(image, [4])["gradcam"]
    apart = distance(grid, gradcam(peer, image, ClassifierOutputTarget(4)))
    assert TOLERANCE < apart < 0.2
