"""Which pictures count for a certificate."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.export import trial as module
from sigcam.export.graph import GraphOptions
from sigcam.export.trial import FURTHER, LEAST, Trial
from sigcam.runtime.errors import ParityError
from sigcam.train.double import in_double

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


def test_an_error_on_a_picture_that_does_not_jump_counts(trial, jumps):
    judge(trial, 0, 0)
    judge(trial, 1, 1e-3)
    found = trial.certificate((1,))
    assert found.left_out == 0
    assert found.outputs["grids"].max_rel == pytest.approx(1e-3)
