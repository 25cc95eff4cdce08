"""Small steps compute on one thread; large and live ones on as many as there were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sigcam.train.fit import small_steps_alone
from sigcam.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("width", "cached", "threads"),
    [
        (100, True, 1),
        (300_000, True, 2),
        (100, False, 2),  # the backbone runs between the steps
    ],
)
def test_threads_of_a_step(width, cached, threads):
    fit = SimpleNamespace(
        classifier=nn.Linear(width, 2),
        settings=TrainSettings(batch_size=32, cached=cached),
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
