"""Small steps compute on one thread; large ones on as many as there were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sigcam.train.fit import small_steps_alone
from sigcam.train.settings import TrainSettings


@pytest.mark.parametrize(("width", "threads"), [(100, 1), (300_000, 2)])
def test_threads_of_a_step(width, threads):
    fit = SimpleNamespace(
        classifier=nn.Linear(width, 2),
        settings=TrainSettings(batch_size=32),
        world=SimpleNamespace(device=torch.device("cpu")),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with small_steps_alone(fit):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
