"""Joins several processes started by torchrun: who is who, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from sigcam.core.errors import BackendUnavailableError, UsageError


@dataclass(frozen=True)
class World:
    """This process among those of a run.

    Attributes:
        rank: 0 <= rank < size; only rank 0 writes reports and checkpoints.
        size: number of processes; 1 without torchrun.
        device: what this process computes on.

    Example:
        >>> world = World(rank=0, size=1, device=torch.device("cpu"))
        >>> world.is_main, world.total([2.0]), world.merged({3: "truncated"})
        (True, [2.0], {3: 'truncated'})
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Returns whether this is the process that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.size > 1:
            dist.barrier()

    def total(self, values: list[float]) -> list[float]:
        """Returns the element-wise sums over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.size > 1 else values

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process."""
        return bool(self._reduce([float(flag)], dist.ReduceOp.MAX)[0]) if self.size > 1 else flag

    def merged(self, part: Mapping[int, str]) -> dict[int, str]:
        """Returns the entries of all processes."""
        parts: list[Mapping[int, str]] = [part] * self.size
        if self.size > 1:
            dist.all_gather_object(parts, part)
        return {key: value for one in parts for key, value in one.items()}

    def _reduce(self, values: list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=how)
        reduced: list[float] = tensor.tolist()
        return reduced

    def parallel(self, module: nn.Module) -> nn.Module:
        """Returns the module; that averages gradients over processes where there are several."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are frozen statistics here, the same in every process.
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that torchrun started; alone without it.

    Reads RANK, WORLD_SIZE and LOCAL_RANK. The process group (NCCL on CUDA, Gloo on the
    CPU) is left at the end, unless the caller had made one already, which is then used.

    Args:
        device: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "cuda:<n>".

    Raises:
        BackendUnavailableError: CUDA is asked for and there is none.
        UsageError: an unknown device, or "cuda:<n>" together with torchrun.

    Example:
        >>> with join_world("cpu") as world:  # not under torchrun
        ...     world.rank, world.size, world.is_main
        (0, 1, True)
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, size)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if ours:
            dist.destroy_process_group()


def _device(name: str, size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index and size > 1:
        raise UsageError(f"torchrun gives each process its own GPU; use device cuda, not {name}")
    number = int(index) if index else int(os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        raise BackendUnavailableError(
            f"device {name} was asked for (GPU {number}), PyTorch sees {count} GPUs; use device "
            "cpu or install PyTorch for your GPU"
        )
    return torch.device("cuda", number)
