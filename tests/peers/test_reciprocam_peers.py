"""ReciproCAM against the package openvino_xai, on grids and on tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.export.modules import CamGraph
from sigcam.export.options import ExportOptions
from tests.support import peer_heatmaps as peers
from tests.support.openvino_xai_peer import imported

pytestmark = pytest.mark.slow

IDS = [3, 0, 17]


class Deep(nn.Module):
    """Convolutions, and a head with a hidden layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 40))
        self.eval()

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def ours(model, image, size, layer):
    dual = DualBranch(model, input_size=size, target_layers=[layer])
    options = ExportOptions(method="reciprocam", branch="softmax", has_sigmoid=False)
    graph = CamGraph(dual, options)
    with torch.no_grad():
        values = graph.weight_graph.run(graph.cut.front(image))
        return graph.explain(values, torch.tensor([IDS]))["cams"][0].numpy()


def theirs(kind, model, image, layer):
    module = imported("methods.white_box.torch")
    method = getattr(module, kind)(model, target_layer=layer, embed_scaling=False)
    return method.generate_saliency_map(image.numpy())[0, IDS]


@pytest.mark.parametrize(
    ("kind", "build", "layer"),
    [
        ("TorchReciproCAM", Deep, "second"),
        ("TorchReciproCAM", Deep, "first"),
        # They take the last module whose name holds the text.
        ("TorchReciproCAM", lambda: peers.make(peers.resnet, 64).model, "layer4.0.act2"),
        ("TorchViTReciproCAM", lambda: peers.make(peers.vit, 64).model, "blocks.1.norm1"),
    ],
    ids=["the last layer", "below it", "resnet", "vit"],
)
def test_normalised_maps_agree(kind, build, layer):
    model = build()
    image = peers.smooth_images(1, 64)
    found = zip(ours(model, image, 64, layer), theirs(kind, model, image, layer), strict=True)
    for got, want in found:
        assert peers.scaled(got).any()
        np.testing.assert_allclose(peers.scaled(got), peers.scaled(want - want.min()), atol=1e-3)
