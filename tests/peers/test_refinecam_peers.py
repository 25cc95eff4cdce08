"""RefineCAM against grad-cam and torchcam, where definitions agree.

torchcam multiplies CAMs at the size of the largest, as we do. grad-cam enlarges each to the input
first, which is the same where they have the input's size already.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("pytorch_grad_cam")

from pytorch_grad_cam import RefineCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from tests.support import peer_heatmaps as peers

pytestmark = pytest.mark.slow

SIZE, CLASSES = 16, 5


class Net(nn.Module):
    """Two convolutions and a head with a hidden layer, whose gradients are large."""

    def __init__(self, stride):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, stride, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        with torch.no_grad():
            self.head[-1].weight *= 100  # or grad-cam's 1e-7 under its fractions would show
        self.eval()

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


LAYERS = ("first", "second")


def ours_of(net, layers, method):
    peer = peers.Peer(net, [net.get_submodule(name) for name in layers], target_layers=layers)
    return peer, peers.Ours(peer, (method,), SIZE)


def test_agrees_with_grad_cam_at_the_inputs_size():
    peer, ours = ours_of(Net(stride=1), LAYERS, "refinecam")
    for image in peers.smooth_images(2, SIZE).split(1):
        cams = ours.cams(image, list(range(CLASSES)))["refinecam"]
        assert sum(peers.scaled(cam).any() for cam in cams) >= 3
        for class_id, cam in enumerate(cams):
            theirs = RefineCAM(peer.model, peer.layers)(image, [ClassifierOutputTarget(class_id)])
            np.testing.assert_allclose(peers.scaled(cam), theirs[0], atol=1e-4)


def test_agrees_with_torchcam_on_layers_of_several_sizes():
    methods = pytest.importorskip("torchcam.methods")
    _, ours = ours_of(Net(stride=2), LAYERS, "refinecam")
    alone = [ours_of(Net(stride=2), (name,), "gradcam++")[1] for name in LAYERS]
    ids = list(range(CLASSES))
    for image in peers.smooth_images(2, SIZE).split(1):
        # Its own Grad-CAM++ leaves out the denominator, so it gets our CAMs.
        cams = [torch.from_numpy(one.cams(image, ids)["gradcam++"]) for one in alone]
        theirs = methods.RefineCAM.fuse_cams(cams, normalized=False).numpy()
        got = ours.cams(image, ids)["refinecam"]
        assert got.max() > 0.1
        np.testing.assert_allclose(got, theirs, atol=1e-5)
