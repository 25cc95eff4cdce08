"""Names of layers lead back to the values that they were given for."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.graph import clean_cuts, crossings
from sigcam.classifier.split import split
from sigcam.classifier.trace import LAYER, MARK, trace
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 16, 16)


class Stages(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


class Backbone(nn.Module):
    """Two stages, returned in a container of some kind."""

    def __init__(self, pack):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True))
        self.pack = pack

    def forward(self, x):
        low = self.low(x)
        return self.pack(low, self.high(low))


class Net(nn.Module):
    def __init__(self, pack, unpack):
        super().__init__()
        self.body, self.unpack = Backbone(pack), unpack
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.unpack(self.body(x)).mean((2, 3)))


class Keeps(nn.Module):
    """Ends with what it keeps for later, not with what it returns."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        y = self.conv(x).relu()
        self.kept = self.gate(y).tanh()
        return y


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = Keeps(), nn.Linear(6, 5)

    def forward(self, x):
        y = self.body(x)
        return self.fc((y * self.body.kept).mean((2, 3)))


class Twice(nn.Module):
    """One block that runs twice, with something after the second run."""

    def __init__(self, after):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.after, self.fc = after, nn.Linear(6, 5)

    def forward(self, x):
        x = self.block(self.block(self.stem(x)))
        return self.fc(self.after(x).mean((2, 3)))


class Shared(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)
        self.second, self.fc = self.first, nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))


class Functions(nn.Module):
    """The same operator several times in one forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = functional.relu(self.b(functional.relu(self.a(x))))
        return self.fc(functional.relu(x.mean((2, 3))))


class Odd(nn.Module):
    """Modules whose names hold what names of values hold too."""

    def __init__(self):
        super().__init__()
        self.add_module("a:b", nn.Conv2d(3, 6, 3))
        self.add_module("run#2", nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.get_submodule("run#2")(self.get_submodule("a:b")(x))
        return self.fc(x.mean((2, 3)))


class Dropped(nn.Module):
    """A module that drops entries of its grid out before it returns it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def identities():
    return nn.Sequential(
        nn.Sequential(nn.Identity(), nn.Conv2d(3, 6, 3), nn.Identity()),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


MODELS = {
    "dict": (lambda: Net(lambda a, b: {"a": a, "b": b}, lambda o: o["b"]), "body.high"),
    "the lower last": (lambda: Net(lambda a, b: {"b": b, "a": a}, lambda o: o["b"]), "body.high"),
    "tuple": (lambda: Net(lambda a, b: (a, b), lambda o: o[1]), "body.high"),
    "list": (lambda: Net(lambda a, b: [b], lambda o: o[-1]), "body.high"),
    "namedtuple": (lambda: Net(Stages, lambda o: o.high), "body.high"),
    "tensor": (lambda: Net(lambda a, b: b, lambda o: o), "body"),
    "kept": (Kept, "forward:mul"),
    "twice": (lambda: Twice(nn.Identity()), "block"),
    "dropped": (Dropped, "body.1"),
    "functions": (Functions, "forward:relu"),
    "identities": (identities, "0"),
    "odd": (Odd, "run#2"),
    "shared": (Shared, "second"),
}


def operators(head):
    """What a head computes, with its dropouts and without the marks of layers."""
    marked = [n for n in head.nodes if n.target is MARK and n.args[1].startswith(LAYER)]
    return [n.target for n in head.nodes if n not in marked]


@pytest.mark.parametrize("case", MODELS)
def test_the_name_of_the_branch_layer_leads_back(case):
    build, name = MODELS[case]
    torch.manual_seed(0)
    model = build()
    found = split(model, IMAGES)
    assert found.branch.layer == name
    again = split(model, IMAGES, found.branch.layer, [found.targets[0].layer])
    assert again.branch.layer == name
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(found.features(images), again.features(images))
    assert operators(found.head) == operators(again.head)


@pytest.mark.parametrize("name", ["body.low", "body:relu", "body.high", "body.low.0"])
def test_stages_inside_a_module_that_returns_a_dict_can_be_named(name):
    model = Net(lambda a, b: {"a": a, "b": b}, lambda o: o["b"])
    if name == "body:relu":
        with pytest.raises(ModelError, match="no value 'body:relu'"):
            split(model, IMAGES, target_layers=[name])
        return
    assert split(model, IMAGES, target_layers=[name]).targets[0].layer == name


def test_each_run_of_a_module_has_a_number():
    torch.manual_seed(0)
    model = Twice(nn.Identity()).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        first = model.block(model.stem(images))
        runs = {"block#1": first, "block#2": model.block(first), "block": model.block(first)}
        for name, want in runs.items():
            parts = split(model, IMAGES, name)
            assert parts.branch.layer == name
            torch.testing.assert_close(parts.features(images), want)
    with pytest.raises(ModelError, match=r"'block#3' .*of its runs they depend on #1 and #2"):
        split(model, IMAGES, "block#3")


def test_each_value_of_an_operator_has_a_number():
    torch.manual_seed(0)
    model, images = Functions().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        first = functional.relu(model.a(images))
        torch.testing.assert_close(split(model, IMAGES, "forward:relu#1").features(images), first)
        second = functional.relu(model.b(first))
        torch.testing.assert_close(split(model, IMAGES, "forward:relu#2").features(images), second)
    with pytest.raises(ModelError, match=r"must give a grid.*it gives \[B, 6\]"):
        split(model, IMAGES, "forward:relu#3")
    with pytest.raises(ModelError, match="no value 'forward:relu#4'"):
        split(model, IMAGES, "forward:relu#4")


def test_a_value_that_is_not_the_last_of_its_operator_gets_its_number():
    class Between(Functions):
        def forward(self, x):
            x = functional.relu(functional.relu(self.a(x)) - 0.1)
            low = x.mean((2, 3))
            return self.fc(low) + functional.relu(self.b(x))[:, :5].mean((2, 3))

    torch.manual_seed(0)
    found = split(Between(), IMAGES)
    assert found.branch.layer == "forward:relu#2"
    assert split(Between(), IMAGES, "forward:relu#2").branch.layer == "forward:relu#2"


def test_a_module_under_two_names_answers_to_both():
    for name in ("first", "second"):
        assert split(Shared(), IMAGES, name).branch.layer == name


def test_target_layers_that_are_found_lead_back():
    """A transformer's target layer lies before the branch layer."""
    torch.manual_seed(0)
    model = ClassToken()
    dual = DualBranch(model, input_size=16)
    layer = dual.targets[0].layer
    assert layer != dual.branch_layer
    again = DualBranch(model, dual.branch_layer, input_size=16, target_layers=[layer])
    assert again.targets[0].layer == layer
    assert again.targets[0].layout == dual.targets[0].layout


class ClassToken(nn.Module):
    """Patches and a class token, one block that returns a tuple."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.block, self.fc = nn.LayerNorm(8), Block(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        x, _ = self.block(x)
        return self.fc(self.norm(x)[:, 0])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        return x + functional.scaled_dot_product_attention(q, k, v), None


@pytest.mark.parametrize("case", ["dict", "kept", "twice", "functions"])
def test_clean_cuts_are_the_values_without_crossings(case):
    traced = trace(MODELS[case][0](), IMAGES)
    end, image = traced.logits, traced.image
    clean = set(clean_cuts(end, image))
    needed = [n for n in traced.graph.nodes if n in _path(end, image)]
    assert clean
    for node in needed:
        assert (node in clean) == (not crossings(node, end, image)), node


def _path(end, image):
    """What the images lead to, on the way to the logits."""
    from sigcam.classifier.graph import ancestors

    return {n for n in ancestors(end) if image in ancestors(n) and n.target is not _SIZE}


_SIZE = torch.ops.aten.sym_size.int
