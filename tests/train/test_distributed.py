from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sigcam.core.errors import UsageError
from sigcam.train.distributed import World, join_world
from sigcam.train.lbfgs import fit_lbfgs
from tests.support.paths import ROOT

SCRIPT = ROOT / "tests" / "support" / "distributed_script.py"


def run(processes: int, folder: Path, out: Path, cached: str) -> list[dict]:
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(out), cached],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"result-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("cached", ["cached", "live"])
def test_two_processes_equal_one_with_the_same_global_batch(
    folder: Path, tmp_path: Path, cached: str
) -> None:
    bad = [2, 9, 15, 21, 28, 34]
    for index in bad:
        file = folder / f"class{index // 10}" / f"{index % 10}.png"
        file.write_bytes(file.read_bytes()[:60])  # its header is good, so that it is opened
    (alone,) = run(1, folder, tmp_path / "one", cached)
    first, second = run(2, folder, tmp_path / "two", cached)
    assert first == second
    for name, value in alone["head"].items():
        np.testing.assert_allclose(first["head"][name], value, rtol=1e-3, atol=1e-4)
    for name in ("loss", "val_loss", "top1"):
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-3)
    assert first["failed"] == alone["failed"] == bad
    assert first["images"] == alone["images"]
    assert (tmp_path / "two" / "run" / "checkpoint.pt").is_file()
    lines = (tmp_path / "two" / "run" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 4


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
