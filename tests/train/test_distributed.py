from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sigcam.core.errors import UsageError
from sigcam.train.distributed import World, join_world
from sigcam.train.lbfgs import fit_lbfgs
from tests.support import distributed_script
from tests.support.toy import write_folder

WAYS = ("cached", "live")
BAD = [2, 9, 15, 21, 28, 34]
"""Indices of files that end too early."""


def results(out: Path, processes: int) -> dict[str, list[dict]]:
    """What each process wrote of each way."""
    files = {way: [out / way / f"result-{rank}.json" for rank in range(processes)] for way in WAYS}
    return {way: [json.loads(file.read_text()) for file in files[way]] for way in WAYS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    """The toy trained in this process, and by two under torchrun; in both ways each."""
    base = tmp_path_factory.mktemp("distributed")
    images, alone, together = (base / name for name in ("data", "alone", "together"))
    write_folder(images)
    for index in BAD:
        file = images / f"class{index // 10}" / f"{index % 10}.png"
        file.write_bytes(file.read_bytes()[:60])  # its header is good, so that it is opened
    for way in WAYS:
        (alone / way).mkdir(parents=True)
        (together / way).mkdir(parents=True)
    distributed_script.main(str(images), str(alone), *WAYS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, distributed_script.__file__, images, together, *WAYS],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=together, alone=results(alone, 1), together=results(together, 2))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one_with_the_same_global_batch(
    runs: SimpleNamespace, way: str
) -> None:
    (alone,) = runs.alone[way]
    first, second = runs.together[way]
    assert first == second
    for name, value in alone["head"].items():
        np.testing.assert_allclose(first["head"][name], value, rtol=1e-3, atol=1e-4)
    for name in ("loss", "val_loss", "top1"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-3)
    assert first["failed"] == alone["failed"] == BAD
    assert first["images"] == alone["images"]
    run_dir = runs.folder / way / "run"
    assert (run_dir / "checkpoint.pt").is_file()
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 4


def test_one_process_needs_no_group() -> None:
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        module = torch.nn.Linear(2, 2)
        assert world.parallel(module) is module
        assert world.total([1.0, 2.0]) == [1.0, 2.0]
        assert world.any(True)
        assert not world.any(False)
    assert not torch.distributed.is_initialized()


def test_lbfgs_is_for_one_process() -> None:
    class Several:
        world = World(0, 2, torch.device("cpu"))

    with pytest.raises(UsageError, match="without torchrun, or use Adam"):
        fit_lbfgs(Several(), (1,), resume=False)


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(UsageError, match="device must be"), join_world(name):
        pass
