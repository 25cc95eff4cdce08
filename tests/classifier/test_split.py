"""Where classifiers are cut, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.classifier.split import split
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """Blocks, average pooling, dropout, linear; hooks for what the tests vary."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.unused = nn.Linear(2, 2)
        self.aside = nn.Conv2d(4, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def grid(self, x):
        return self.second(self.first(x))

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.grid(x)).flatten(1)))


def made(**methods):
    return type("Made", (Net,), methods)()


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: functional.pad(x, (0, 1, 0, 1)),
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: functional.pad(x, (0, 1, 0, 0), mode="replicate"),
        nn.ZeroPad2d((1, 0, 0, 0)),
    ],
    ids=["zeros", "reflected", "replicated", "module"],
)
def test_a_padding_belongs_to_the_pooling_behind_it(pad):
    """As ONNX's AveragePool with pads has it: the padded grid has a row that the image hasn't."""
    model = made(grid=lambda self, x: pad(self.second(self.first(x))))
    result = split(model, IMAGES)
    assert (result.branch.layer, result.branch.layout.shape) == ("second", (6, 7, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "target", "shape", "neck", "linear"),
    [
        ("resnet18", 64, "layer4", (512, 2, 2), (512,), True),
        ("mobilenet_v3_small", 64, "features", (576, 2, 2), (576,), False),
        ("densenet121", 64, "forward:relu", (1024, 2, 2), (1024,), True),
        ("vgg11", 64, "features", (512, 2, 2), (25088,), False),
        ("squeezenet1_0", 64, "features", (512, 3, 3), (512, 3, 3), False),
        ("convnext_tiny", 64, "features", (768, 2, 2), (1, 1, 768), False),
    ],
)
def test_torchvision_models(name, size, target, shape, neck, linear):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=9)
    result = split(model, torch.zeros(1, 3, size, size))
    assert (result.branch.layer, result.branch.layout.shape, result.num_classes) == (
        target,
        shape,
        9,
    )
    head = Head(result, live_dropout=False)
    assert head.neck_shape == neck
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        want = model.eval()(images)
        got = head(result.features(images))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if linear:
        W, b = head.linear_weights()
        with torch.no_grad():
            pooled = result.features(images).mean((2, 3))
        torch.testing.assert_close(pooled @ W.T + b, want, rtol=1e-3, atol=1e-4)
    else:
        with pytest.raises(ModelError, match="must be global average pooling"):
            head.linear_weights()


@pytest.mark.parametrize("name", ["first", "second", "second.0", "first.1"])
def test_a_layer_by_name_gives_what_that_layer_returns(name):
    model = Net()
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda *a: seen.append(a[2].clone()))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    result = split(model, IMAGES, name)
    assert result.branch.layer == name
    with torch.no_grad():
        torch.testing.assert_close(result.features(images), seen[0])


def test_the_found_name_gives_the_same_cut():
    def forward(self, x):
        return self.fc(self.pool(functional.relu(self.second[:2](self.first(x)))).flatten(1))

    for model in (Net(), made(forward=forward)):
        found = split(model, IMAGES)
        again = split(model, IMAGES, found.branch.layer)
        images = torch.randn(2, 3, 16, 16)
        assert torch.equal(found.features(images), again.features(images))
        assert again.branch.layer == found.branch.layer


def test_a_layer_that_runs_twice_counts_the_last_time():
    model = made(
        forward=lambda s, x: s.fc(s.pool(s.second[2](s.second(s.first(x)) - 1)).flatten(1))
    )
    result = split(model, IMAGES, "second.2")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        want = (model.eval().grid(images) - 1).relu()
        torch.testing.assert_close(result.features(images), want)


def test_average_pooling_and_dropout_on_a_grid_belong_to_the_head():
    model = made(
        forward=lambda s, x: s.fc(s.pool(s.drop(functional.avg_pool2d(s.grid(x), 2))).flatten(1))
    )
    result = split(model, IMAGES)
    assert result.branch.layer == "second"
    assert result.branch.layout.shape == (6, 7, 7)


def test_in_place_operators_after_the_cut_do_not_reach_the_features():
    model = made(
        forward=lambda s, x: s.fc(s.pool(s.second[1](s.second[0](x_(s, x))).relu_()).flatten(1))
    )
    result = split(model, IMAGES, "second.1")
    head = Head(result, live_dropout=False)
    features = torch.randn(2, *result.branch.layout.shape)
    before = features.clone()
    head(features)
    assert torch.equal(features, before)


def x_(self, x):
    return self.first(x)


REFUSED = {
    "no such layer": (Net, "secnd", "no layer 'secnd'; did you mean second"),
    "far from any": (Net, "q", "the top level has first, second"),
    "never runs": (Net, "unused", "don't depend on the output of the layer 'unused'"),
    "no grid": (
        Net,
        "pool",
        r"must give a grid \[B, N, h, w\] with h \* w > 1, .* it gives \[B, 6, 1, 1\]",
    ),
    "logits": (Net, "fc", r"it gives \[B, 5\]"),
    "no operator": (Net, "forward:tanh", "no value 'forward:tanh'"),
    "off the path": (
        lambda: made(forward=lambda s, x: (s.aside(s.first(x)), Net.forward(s, x))[1]),
        "aside",
        "don't depend on the output of the layer 'aside'",
    ),
    "a second way": (
        lambda: made(
            forward=lambda s, x: s.fc(s.pool(s.grid(x)).flatten(1)) + s.first(x).mean((2, 3))[:, :1]
        ),
        "second",
        r"need more than the output of 'second': also forward:slice \[B, 1\] out of first\.1",
    ),
    "control flow": (
        lambda: made(
            forward=lambda s, x: Net.forward(s, x) if x.sum() > 0 else s.fc(x[:, 0, 0, :6])
        ),
        None,
        "chooses its way by the values of tensors",
    ),
    "fixed batch": (
        lambda: made(forward=lambda s, x: s.fc(s.pool(s.grid(x)).view(2, 6))),
        None,
        "any batch size",
    ),
    "two outputs": (
        lambda: made(forward=lambda s, x: (x, x)),
        None,
        r"it returns \[0\] \[B, 3, 16, 16\]",
    ),
    "not a matrix": (
        lambda: made(forward=Net.grid),
        None,
        r"\[B, C\], it returns \[B, 6, 7, 7\]",
    ),
    "no grid at all": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)),
        None,
        "leads alone to the logits; give a larger input, or a network that keeps a grid",
    ),
    "half precision": (lambda: Net().half(), None, r"must be float32, first\.0\.weight"),
    "random": (
        lambda: made(forward=lambda s, x: Net.forward(s, x + torch.rand_like(x))),
        None,
        "must be deterministic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    build, name, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        split(build(), IMAGES, name)


def test_the_exporter_s_own_error_is_chained():
    model = made(forward=lambda s, x: s.fc(s.pool(s.grid(x)).view(2, 6)))
    with pytest.raises(ModelError) as caught:
        DualBranch(model, example=IMAGES)
    assert caught.value.__cause__ is not None
