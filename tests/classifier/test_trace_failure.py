"""Each cause for which a model can't be traced has a sentence of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.split import split
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.fc = nn.Linear(6, 5)

    def pooled(self, x):
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.pooled(x))


def made(forward, *args):
    return type("Made", (Net,), {"forward": forward})(*args)


def flat(channels, side):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * (side - 2) ** 2, 5))


def by_len(s, x):
    return s.fc(s.pooled(x).view(len(x), 6))


def by_int(s, x):
    return s.fc(s.pooled(x).view(int(x.shape[0]), 6))


def by_loop(s, x):
    return torch.stack([s.fc(s.pooled(image[None]))[0] for image in x])


def by_range(s, x):
    return torch.cat([s.fc(s.pooled(x[i : i + 1])) for i in range(x.size(0))])


def by_sum(s, x):
    return Net.forward(s, x) if x.sum() > 0 else s.fc(x[:, 0, 0, :6])


def by_loop_of_values(s, x):
    z = s.pooled(x)
    while z.norm() > 1:
        z = z / 2
    return s.fc(z)


def by_float(s, x):
    z = s.pooled(x)
    return s.fc(z / float(z.norm()))


def with_numpy(s, x):
    return s.fc(torch.from_numpy(s.pooled(x).numpy()))


CAUSES = {
    "one channel": (lambda: Net(1), "takes images of 1 channels, the images given have 3; give"),
    "four channels": (lambda: Net(4), "takes images of 4 channels, the images given have 3"),
    "eleven channels": (lambda: Net(11), "takes images of 11 channels"),
    "channels by a norm": (
        lambda: nn.Sequential(nn.BatchNorm2d(1), Net(1)), "takes images of 1 channels",
    ),
    "two inputs": (lambda: made(lambda s, x, meta: s.fc(s.pooled(x)) + meta), "also needs meta; w"),
    "a keyword": (lambda: made(lambda s, x, *, age: s.fc(s.pooled(x)) + age), "also needs age"),
    "no input": (lambda: made(lambda s: s.fc.weight), "its forward takes none"),
    "len": (lambda: made(by_len), r"fixed Python number: by len\(x\)"),
    "int": (lambda: made(by_int), r"fixed Python number"),
    "a loop over images": (lambda: made(by_loop), "loop over the images"),
    "a range": (lambda: made(by_range), "fixed Python number"),
    "batches of two": (
        lambda: made(lambda s, x: s.fc(s.pooled(x).view(2, 6))),
        r"runs with 2 \(RuntimeError: shape '\[2, 6\]' is invalid .*; write x.shape",
    ),
    "batches of one": (
        lambda: made(lambda s, x: s.fc(s.pooled(x).view(1, 6))), r"it runs with 1 \(",
    ),
    "a choice by values": (
        lambda: made(by_sum), r"chooses its way .* \(at test_trace_failure.py, line \d+: .*x.sum",
    ),
    "a loop by values": (lambda: made(by_loop_of_values), "chooses its way by the values"),
    "a division by a number": (
        lambda: made(by_float), r"takes a Python number out .*float\(z.norm.*; keep it a tensor",
    ),
    "a larger size": (lambda: flat(3, 32), r"16x16 pixels .* does on 32x32; give .*--size 32"),
    "a kernel larger than the image": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 28), nn.Flatten(), nn.Linear(4, 5)),
        "does on 28x28",
    ),
    "another size, asserted": (
        lambda: made(lambda s, x: (s.fc(s.pooled(x)), s.check(x.shape[2] == 64))[0]),
        "fails on images",
    ),
    "numpy": (lambda: made(with_numpy), "can't trace it .*numpy.*; write that part with torch"),
    "its own fault": (
        lambda: made(lambda s, x: s.missing(x)),
        r"fails on images \[1, 3, 16, 16\] \(at test_trace_failure.py, line \d+.*no attribute",
    ),
    "no memory": (
        lambda: made(lambda s, x: s.fc(s.pooled(x)) + torch.zeros(10**13).sum()),
        "isn't enough memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUSES)
def test_each_cause_has_its_sentence(case):
    make, words = CAUSES[case]
    with pytest.raises(ModelError, match=words) as caught:
        split(make(), IMAGES)
    assert len(str(caught.value)) < 400


def test_following_the_advice_works():
    assert split(Net(1), torch.zeros(1, 1, 16, 16)).num_classes == 5
    assert split(flat(3, 32), torch.zeros(1, 3, 32, 32)).num_classes == 5
    by_shape = made(lambda s, x: s.fc(s.pooled(x).view(x.shape[0], 6)))
    assert split(by_shape, IMAGES).num_classes == 5
    doubled = made(lambda s, x: s.fc(torch.where((z := s.pooled(x)).sum(1, True) > 0, z, 2 * z)))
    assert split(doubled, IMAGES).num_classes == 5
    kept = made(lambda s, x: s.fc((z := s.pooled(x)) / z.norm(dim=1, keepdim=True)))
    assert split(kept, IMAGES).num_classes == 5
