"""A checkpoint whose file was damaged isn't gone on from."""

from pathlib import Path

import pytest
import torch

from sigcam.core.errors import TrainingError
from sigcam.train.checkpoint import CHECKPOINT, State, load_checkpoint, save_checkpoint

RUN = {"seed": 0}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, RUN, State(epoch=1), {"weight": torch.rand(64, 64)}, {})
    return tmp_path


def test_whole(saved):
    assert load_checkpoint(saved, RUN)[1]["weight"].shape == (64, 64)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.6, 0.8])
def test_a_flipped_bit_anywhere_in_the_weights(saved, share):
    """torch.load takes it: the archive's sums are there, and it doesn't compare them."""
    file = saved / CHECKPOINT
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 16
    file.write_bytes(data)
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        load_checkpoint(saved, RUN)


def test_not_an_archive(saved):
    torch.save({"format": 2}, saved / CHECKPOINT, _use_new_zipfile_serialization=False)
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        load_checkpoint(saved, RUN)
