"""What a model returns, in whatever it returns it: one tensor is taken, by name."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.outputs import tensors_in
from sigcam.classifier.split import split
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 8, 8)
B = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Pair(NamedTuple):
    main: Tensor
    aux: Tensor | None


@dataclasses.dataclass
class Output:
    scores: Tensor
    loss: Tensor | None = None


class Registered(OrderedDict):
    """A dictionary with attributes, as transformers' ModelOutput is one."""

    def __getattr__(self, name):
        return self[name]


class Net(nn.Module):
    def __init__(self, pack, num_classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, num_classes)
        self.pack = pack

    def forward(self, x):
        features = self.conv(x).relu()
        pooled = features.mean((2, 3))
        return self.pack(self.fc(pooled), pooled, features)


TAKEN = {
    "tensor": (lambda z, p, f: z, ()),
    "tuple": (lambda z, p, f: (z,), ("[0] of tuple",)),
    "list": (lambda z, p, f: [None, z], ("[1] of list",)),
    "tuple with None": (lambda z, p, f: (z, None), ("[0] of tuple",)),
    "tuple with features": (lambda z, p, f: (f, z), ("[1] of tuple",)),
    "tuple with a number": (lambda z, p, f: (0.5, z, "x"), ("[1] of tuple",)),
    "named tuple": (lambda z, p, f: Pair(z, None), ("main of Pair",)),
    "dict": (lambda z, p, f: {"out": z}, ("out of dict",)),
    "dict with ids": (lambda z, p, f: {"out": z, "top": z.argmax(1)}, ("out of dict",)),
    "dict with features": (lambda z, p, f: {"f": f, "out": z}, ("out of dict",)),
    "the one called logits": (
        lambda z, p, f: {"pooled": p, "logits": z}, ("logits of dict",),
    ),
    "nested": (lambda z, p, f: {"heads": [{"cls": z}], "n": 1}, ("heads[0].cls of dict",)),
    "dataclass": (lambda z, p, f: Output(z), ("scores of Output",)),
    "a mapping class": (
        lambda z, p, f: Registered(loss=None, logits=z, hidden_states=(f, f)),
        ("logits of Registered",),
    ),
    "any object": (lambda z, p, f: SimpleNamespace(y=z), ("y of SimpleNamespace",)),
    "twice the same": (lambda z, p, f: (z, z), ("[0] of tuple",)),
    "beside one value": (lambda z, p, f: (z, z.std(1)), ("[0] of tuple",)),
    "beside probabilities": (lambda z, p, f: (z.softmax(1), z), ("[1] of tuple",)),
    "beside their logarithm": (lambda z, p, f: (z, z.softmax(-1).log()), ("[0] of tuple",)),
    "beside sigmoids": (lambda z, p, f: {"p": z.sigmoid(), "z": z}, ("z of dict",)),
    "beside those of a view": (
        lambda z, p, f: (z, z[:, :, None].softmax(1)[:, :, 0]), ("[0] of tuple",),
    ),
    "squeezed": (lambda z, p, f: z[:, :, None, None].squeeze(), ()),
    "a 1x1 grid": (lambda z, p, f: z[:, :, None, None], ()),
    "three axes": (lambda z, p, f: z[:, :, None], ()),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_one_tensor_is_taken_and_named(case):
    pack, notes = TAKEN[case]
    model = Net(pack).eval()
    dual = DualBranch(model, example=IMAGES)
    taken = [note.split(" of ") for note in notes]
    assert dual.notes == tuple(
        f"the output {name} of the model's {kind} is taken as its logits" for name, kind in taken
    )
    with torch.no_grad():
        want = model.fc(model.conv(B).relu().mean((2, 3)))
        torch.testing.assert_close(dual(B).logits, want)
        torch.testing.assert_close(dual(B[:1]).logits, want[:1])  # no axis is lost


def test_what_is_taken_may_end_in_a_softmax():
    dual = DualBranch(Net(lambda z, p, f: {"probabilities": z.softmax(1)}), example=IMAGES)
    assert dual.squashing == "softmax"
    assert len(dual.notes) == 2


REFUSED = {
    "several": (lambda z, p, f: (z, p), r"several .* \[0\] \[B, 5\], \[1\] \[B, 6\]; wrap it"),
    "several by name": (
        lambda z, p, f: {"a": {"logits": z}, "b": {"logits": z * 2}}, "several of its outputs",
    ),
    "probabilities of something else": (
        lambda z, p, f: (z, p.softmax(1)), "several of its outputs",
    ),
    "nothing": (lambda z, p, f: None, "returns NoneType and no such"),
    "ids": (lambda z, p, f: z.argmax(1), "returns torch.int64 and no"),
    "text": (lambda z, p, f: {"a": "cat"}, "returns dict and no"),
    "features only": (lambda z, p, f: {"f": f}, r"it returns f \[B, 6, 6, 6\]; wrap"),
    "no batch": (lambda z, p, f: z.mean(0), r"it returns \[5\]"),
    "a scalar": (lambda z, p, f: z.mean(), "and no such tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    pack, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        split(Net(pack), IMAGES)


def test_following_the_advice_on_several_outputs_works():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(lambda z, p, f: (z, p))

        def forward(self, x):
            return self.net(x)[0]

    assert split(Wrapped(), IMAGES).num_classes == 5
    assert split(Net(lambda z, p, f: {"logits": z, "p": p}), IMAGES).num_classes == 5


def test_squeezing_inside_the_network_keeps_the_batch():
    class Squeezes(Net):
        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3), keepdim=True).squeeze())

    model = Squeezes(None).eval()
    dual = DualBranch(model, example=IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(dual(B[:1]).logits, model(B)[:1])


def test_what_refers_to_itself_ends():
    loop: list = [torch.zeros(2, 3)]
    loop.append(loop)
    assert [one.name for one in tensors_in(loop)] == ["[0]"]


@pytest.mark.slow
def test_the_outputs_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    dual = DualBranch(model, input_size=32)
    assert dual.notes == (
        "the output logits of the model's ImageClassifierOutputWithNoAttention is taken as its "
        "logits",
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(dual(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)
