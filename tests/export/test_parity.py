"""Which pictures count for a certificate."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.errors import ParityError
from sigcam.core.spec import Geometry
from sigcam.export.options import GraphOptions
from sigcam.export.parity import certify as module
from sigcam.export.parity.certify import FURTHER, LEAST, Trial
from sigcam.export.parity.compare import is_unstable
from sigcam.export.parity.inputs import normalised

IDS = np.array([[2, 0]])
TOLERANCE = 1e-4


@pytest.fixture
def trial(dual, geometry):
    return Trial(in_double(dual).eval(), GraphOptions(method="gradcam"), geometry, TOLERANCE)


@pytest.fixture
def jumps(monkeypatch):
    """Pictures whose gradient is said to jump, by what their certificate compares."""
    found = set()

    def is_unstable(twin, pictures, *_):
        return pictures.tobytes() in found

    monkeypatch.setattr(module, "is_unstable", is_unstable)
    return found


def judge(trial, index, error):
    """A graph that is right but for a part of its grids."""
    want = trial.known(index).outputs(module.torch.from_numpy(IDS))
    got = {name: want[name].numpy() for name in ("logits", "grids")}
    trial.judge(index, {**got, "grids": got["grids"] * (1 + error)}, IDS)


def run_all(trial, jumps, wrong):
    """Judges every picture; those in `wrong` are off, and their gradient jumps."""

    def run(part):
        for index in part:
            if index in wrong:
                jumps.add(trial.pictures[index : index + 1].tobytes())
            judge(trial, index, 0.1 if index in wrong else 0)

    run(range(5))
    trial.try_further(run)


def test_five_pictures_where_none_jumps(trial, jumps):
    run_all(trial, jumps, ())
    found = trial.certificate((1, 3, 8))
    trial.check_count("the graph")
    assert (found.left_out, found.batch_sizes) == (0, (1, 3, 8))
    assert "further" not in found.inputs
    assert found.outputs["grids"].max_rel < 1e-12


def test_further_pictures_until_enough_count(trial, jumps):
    run_all(trial, jumps, {0, 1, 2, 3, 5})
    found = trial.certificate((1,))
    trial.check_count("the graph")
    # 4 counts, 5 jumps too, 6 and 7 count.
    assert found.left_out == 5
    assert found.inputs.endswith("3 further smooth random ones")
    assert len(trial.pictures) == 5 + FURTHER
    assert len({picture.tobytes() for picture in trial.pictures}) == 5 + FURTHER


def test_too_few_that_count(trial, jumps):
    run_all(trial, jumps, set(range(LEAST - 1, 5 + FURTHER)))
    with pytest.raises(ParityError, match="on 18 of 20 pictures the gradient jumps"):
        trial.check_count("the graph")


def test_what_hangs_on_no_gradient_counts_on_every_picture(trial, jumps):
    jumps.add(trial.pictures[:1].tobytes())
    want = trial.known(0).outputs(module.torch.from_numpy(IDS))
    logits, grids = (want[name].numpy() for name in ("logits", "grids"))
    trial.judge(0, {"logits": logits * 1.5, "grids": grids * 1.1}, IDS)
    found = trial.certificate((1,))
    assert found.left_out == 1
    assert found.outputs["logits"].max_rel == pytest.approx(0.5)
    assert "grids" not in found.outputs


def test_a_grid_that_is_not_a_number_is_no_jump(trial, jumps):
    jumps.add(trial.pictures[:1].tobytes())
    want = trial.known(0).outputs(module.torch.from_numpy(IDS))
    trial.judge(0, {"grids": want["grids"].numpy() * np.nan}, IDS)
    found = trial.certificate((1,))
    assert found.left_out == 0
    assert np.isnan(found.outputs["grids"].max_rel)


def test_empty_grids_are_counted(trial, jumps):
    with module.torch.no_grad():
        for value in trial.twin.sigmoid_head.parameters():
            value.fill_(-1)
    run_all(trial, jumps, ())
    assert trial.certificate((1,)).empty == 5


class Kink(nn.Module):
    """A ReLU, or a smooth function, behind the target layer, at exactly zero for black."""

    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.lift = nn.Conv2d(4, 4, 1)
        self.activation = activation
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.activation(self.lift(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(("activation", "jumps"), [(nn.ReLU(), True), (nn.Tanh(), False)])
def test_is_unstable(activation, jumps):
    module.torch.manual_seed(0)
    net = Kink(activation)
    geometry = Geometry(16, 16, mean=(0.2, 0.3, 0.4), std=(0.3, 0.3, 0.3))
    picture = np.full((1, 16, 16, 3), 128, np.uint8)
    dual = DualBranch(net, "conv", input_size=16)
    with module.torch.no_grad():
        features = dual.features(module.torch.from_numpy(normalised(picture, geometry)).float())
        # One channel's input is zero up to rounding, at every position.
        for head in (dual.softmax_head, dual.sigmoid_head):
            tensors = dict(head.named_parameters())
            weight = next(v for n, v in tensors.items() if "lift" in n and v.ndim == 4)
            bias = next(v for n, v in tensors.items() if "lift" in n and v.ndim == 1)
            bias[0] = -(weight[0, :, 0, 0] @ features[0, :, 0, 0])
    twin = in_double(dual).eval()
    options = GraphOptions(method="gradcam", nwc=False)
    ids = module.torch.tensor([[0]])
    assert is_unstable(twin, picture, geometry, options, ids, TOLERANCE) is jumps


def test_an_error_on_a_picture_that_does_not_jump_counts(trial, jumps):
    judge(trial, 0, 0)
    judge(trial, 1, 1e-3)
    found = trial.certificate((1,))
    assert found.left_out == 0
    assert found.outputs["grids"].max_rel == pytest.approx(1e-3)
