"""Compiles clamp_combine.cu for the CPU and runs plans with it; see host_cuda.h."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import sigcam.kernels
from sigcam.kernels.arguments import CombineArguments, HeatmapArguments
from sigcam.kernels.plan import Launch, Plan

HERE = Path(__file__).resolve().parent
SOURCE = Path(sigcam.kernels.__file__).resolve().parent / "clamp_combine.cu"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]


@dataclass(frozen=True)
class Result:
    """What the launches left behind."""

    heatmaps: np.ndarray
    valid: np.ndarray
    cams: np.ndarray
    counters: np.ndarray


def build(out: Path, *flags: str, source: Path = SOURCE) -> Path:
    """Compiles the source with g++.

    Skips the test where there is no compiler.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    command = [compiler, *FLAGS, f'-DSIGCAM_SOURCE="{source}"', *flags]
    done = subprocess.run(
        [*command, str(HERE / "host_cuda.cpp"), "-o", str(out), "-ldl", "-lpthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def library(out: Path, *, source: Path = SOURCE) -> ctypes.CDLL:
    """The fibers' build as a library."""
    flags = ("-O1", "-fPIC", "-shared", "-DSIGCAM_FIBERS")
    return ctypes.CDLL(str(build(out, *flags, source=source)))


def program(out: Path, *flags: str, source: Path = SOURCE) -> Path:
    """The threads' build as a program, for sanitizers."""
    return build(out, "-O1", "-g1", "-rdynamic", *flags, source=source)


def launches(plan: Plan, combine: CombineArguments, heatmaps: HeatmapArguments):
    """The launches with their arguments, in order."""
    yield plan.combine, combine
    if plan.extremes is not None:
        yield plan.extremes, heatmaps
    yield plan.enlarge, heatmaps


def _outputs(plan: Plan) -> dict[str, np.ndarray]:
    """Buffers full of what must not be left in them."""
    i, m, w = plan.inputs, plan.heatmaps, plan.workspace
    count = i.batch * i.classes
    return {
        "heatmaps": np.full(
            (i.batch, i.classes, m.rows.size, m.columns.size),
            0xAB if m.bytes_ else np.nan, np.uint8 if m.bytes_ else np.float32,
        ),
        "valid": np.full((i.batch, i.classes), 0xAB, np.uint8),
        "arrived": np.zeros(w.counters // 4, np.uint32),
        "cams": np.full((i.batch, i.classes, i.height, i.width), np.nan, np.float32),
        "bounds": np.full((count, 2), np.nan, np.float32),
        "partial": np.full((w.size - w.partial) // 4, np.nan, np.float32),
    }  # fmt: skip


def _result(buffers: dict[str, np.ndarray]) -> Result:
    return Result(buffers["heatmaps"], buffers["valid"], buffers["cams"], buffers["arrived"])


def run_in_library(lib: ctypes.CDLL, plan: Plan, features, weights) -> Result:
    """Runs a plan in one piece of memory for the workspace, as on a GPU."""
    found = _outputs(plan)
    parts = plan.workspace
    workspace = np.full(parts.size, 0xAB, np.uint8)
    workspace[parts.arrived : parts.arrived + parts.counters] = 0
    arguments = plan.arguments(
        features=features.ctypes.data,
        weights=weights.ctypes.data,
        heatmaps=found["heatmaps"].ctypes.data,
        valid=found["valid"].ctypes.data,
        workspace=workspace.ctypes.data,
    )
    for launch, argument in launches(plan, *arguments):
        grid = (ctypes.c_uint * 3)(*launch.grid)
        lib.run(launch.kernel.encode(), ctypes.byref(argument), grid, launch.block, launch.shared)
    size = found["cams"].nbytes
    cams = workspace[parts.cams : parts.cams + size].view(np.float32)
    found["cams"] = cams.reshape(found["cams"].shape).copy()
    found["arrived"] = workspace[parts.arrived : parts.arrived + parts.counters].view(np.uint32)
    return _result(found)


def run_as_program(program: Path, folder: Path, plan: Plan, features, weights):
    """Runs a plan in a process of its own, each buffer an allocation of its exact size.

    Returns:
        The finished process, and the result where it succeeded.
    """
    buffers = {"features": features, "weights": weights, **_outputs(plan)}
    arguments = plan.arguments(features=0, weights=0, heatmaps=0, valid=0, workspace=0)
    parts = [struct.pack("<q", len(buffers))]
    for buffer in buffers.values():
        data = np.ascontiguousarray(buffer).tobytes()
        parts += [struct.pack("<q", len(data)), data]
    steps = list(launches(plan, *arguments))
    parts.append(struct.pack("<q", len(steps)))
    for launch, argument in steps:
        parts.append(_step(launch, argument, list(buffers)))
    case = folder / "case.bin"
    case.write_bytes(b"".join(parts))
    done = subprocess.run([str(program), str(case)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done, None
    data, at = case.read_bytes(), 8
    for name, buffer in buffers.items():
        at += 8
        found = np.frombuffer(data, buffer.dtype, buffer.size, at)
        buffers[name] = found.reshape(buffer.shape)
        at += buffer.nbytes
    return done, _result(buffers)


def _step(launch: Launch, argument: ctypes.Structure, names: list[str]) -> bytes:
    name = launch.kernel.encode()
    pointers = [
        (getattr(type(argument), field).offset, names.index(field), 0)
        for field, kind, *_ in argument._fields_
        if kind is ctypes.c_void_p
    ]
    numbers = [*launch.grid, launch.block, launch.shared, ctypes.sizeof(argument)]
    return b"".join([
        struct.pack("<q", len(name)), name,
        struct.pack(f"<{len(numbers)}q", *numbers), bytes(argument),
        struct.pack("<q", len(pointers)), *(struct.pack("<3q", *p) for p in pointers),
    ])  # fmt: skip
