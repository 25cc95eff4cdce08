"""Score-CAM, Ablation-CAM and Eigen-CAM against the package grad-cam, where definitions agree.

They agree where nothing has to be upsampled for the masks (grad-cam aligns corners), where
the score is above 0 (grad-cam divides by s, we by |s|), and where every channel's mean is 0
(grad-cam centres the features, the paper doesn't). grad-cam's Eigen-CAM leaves the sign to
chance.
"""

import numpy as np
import pytest
import torch
from torch import nn

from sigcam.core.spec import (
    ClassSelection,
    Preprocessing,
    Source,
    Spec,
)
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.multipass.eigencam import _projection
from sigcam.runtime.session import Session
from tests.support.torch_backend import TorchBackend, head_graph_of

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402 (as above)

SIDE, CHANNELS, CLASSES = 14, 6, 5
IDS = [3, 0, 4]


class Net(nn.Module):
    """Features as large as the input; a head with a hidden layer."""

    def __init__(self, centred=False):
        super().__init__()
        torch.manual_seed(1)
        norm = nn.InstanceNorm2d(CHANNELS) if centred else nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(3, CHANNELS, 5, padding=2), norm)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 9), nn.Tanh(),
            nn.Linear(9, CLASSES),
        )  # fmt: skip
        with torch.no_grad():
            self.head[-1].bias += 3  # scores above 0, where the two definitions agree
        self.eval()

    def forward(self, x):
        return self.head(self.body(x))


def session_of(net):
    square = (None, CHANNELS, SIDE, SIDE)
    spec = Spec(
        method="cam",
        branch="softmax",
        nwc=False,
        target_layers=("body",),
        profile="split",
        classes=ClassSelection("input"),
        preprocessing=Preprocessing(
            SIDE, SIDE, "stretch", mean=(0.5,) * 3, std=(0.2,) * 3, layout="float32_nchw"
        ),
        num_classes=CLASSES,
        feature_shapes=(square[1:],),
        source=Source("net", "0"),
        head_input="features",
    )

    def network(image, class_ids):
        features = net.body(image)
        return {
            "logits": net.head(features),
            "class_ids_out": class_ids,
            "features": features,
            "cam_weights": torch.zeros(len(image), class_ids.shape[1], CHANNELS),
        }

    def head(features, class_ids):
        scores = net.head(features).gather(1, class_ids)
        return {"scores": scores, "cams": torch.zeros(*class_ids.shape, SIDE, SIDE)}

    ids, scores = ("int64", (None, None)), ("float32", (None, None))
    artifact = TorchBackend(
        {"image": ("float32", (None, 3, SIDE, SIDE)), "class_ids": ids},
        {
            "logits": ("float32", (None, CLASSES)),
            "class_ids_out": ids,
            "features": ("float32", square),
            "cam_weights": ("float32", (None, None, CHANNELS)),
        },
        network,
    )
    second = TorchBackend(
        {"features": ("float32", square), "class_ids": ids},
        {"scores": scores, "cams": ("float32", (None, None, SIDE, SIDE))},
        head,
    )
    graph = head_graph_of(lambda: second)
    return Session(ExportedModel(spec, artifact, graph), batch_size=4)


def random_image(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def tensor_of(image):
    pixels = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None]
    return (pixels / 255 - 0.5) / 0.2


@pytest.mark.parametrize(
    ("method", "peer"), [("scorecam", "ScoreCAM"), ("ablationcam", "AblationCAM")]
)
@pytest.mark.parametrize("seed", range(3))
def test_normalised_maps_agree(method, peer, seed, capfd):
    net, image = Net(), random_image(seed)
    with torch.no_grad():
        assert net(tensor_of(image)).min() > 0.1
    with session_of(net) as session:
        ours = session.explain(image, classes=IDS, method=method)
    for class_id, one in zip(IDS, ours, strict=True):
        assert one.valid
        fresh = Net()
        with getattr(pytorch_grad_cam, peer)(fresh, [fresh.body]) as cam:
            [theirs] = cam(tensor_of(image), [ClassifierOutputTarget(class_id)])
        np.testing.assert_allclose(one.heatmap, theirs, atol=1e-4)
    capfd.readouterr()  # grad-cam shows a bar for each class


@pytest.mark.parametrize("seed", range(3))
def test_eigencam_agrees_on_centred_features(seed):
    net, image = Net(centred=True), random_image(seed)
    with session_of(net) as session:
        [one] = session.explain(image, method="eigencam", classes=0)
    with torch.no_grad():
        features = net.body(tensor_of(image)).numpy()
    assert np.abs(features.mean((2, 3))).max() < 1e-5
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    [theirs] = get_2d_projection(features)
    nearest = min((theirs, -theirs), key=lambda p: np.abs(np.maximum(p, 0) - one.cam).max())
    np.testing.assert_allclose(one.cam, np.maximum(nearest, 0), atol=1e-4 * np.abs(theirs).max())


def test_eigencam_is_another_map_on_features_that_are_not_centred():
    features = np.random.default_rng(0).random((4, 9)) + 3
    ours = _projection(features)
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    [theirs] = get_2d_projection(features.reshape(1, 4, 3, 3).astype(np.float32))
    assert min(np.abs(ours - p.ravel()).max() for p in (theirs, -theirs)) > 1
