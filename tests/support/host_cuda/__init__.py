"""Compiles clamp_combine.cu for the CPU and runs plans with it; see host_cuda.h."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import sigcam.kernels
from sigcam.kernels.plan import Launch, Plan

HERE = Path(__file__).resolve().parent
SOURCE = Path(sigcam.kernels.__file__).resolve().parent / "clamp_combine.cu"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]


@dataclass(frozen=True)
class Result:
    """What the launches left behind."""

    heatmaps: np.ndarray | list[np.ndarray]
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


def _outputs(plan: Plan) -> dict[str, np.ndarray]:
    """Buffers full of what must not be left in them."""
    i, m, w = plan.inputs, plan.heatmaps, plan.workspace
    count = i.batch * i.classes
    found = {
        "heatmaps": np.full(
            plan.pixels, 0xAB if m.bytes_ else np.nan, np.uint8 if m.bytes_ else np.float32
        ),
        "valid": np.full((i.batch, i.classes), 0xAB, np.uint8),
        "arrived": np.zeros(w.counters // 4, np.uint32),
        "bounds": np.full((count, 2), np.nan, np.float32),
        "partial": np.full((w.places - w.partial) // 4, np.nan, np.float32),
    }
    if plan.combine is not None:
        found["cams"] = np.full((i.batch, i.classes, i.height, i.width), np.nan, np.float32)
    if plan.places is not None:
        found["places"] = np.frombuffer(bytes(plan.places), np.uint8)
    return found


def _result(plan: Plan, buffers: dict[str, np.ndarray]) -> Result:
    made, classes = buffers["heatmaps"], plan.inputs.classes
    ((rows, columns), *_) = plan.heatmaps.axes()
    if plan.places is None:
        images = made.reshape(plan.inputs.batch, classes, rows.size, columns.size)
    else:
        shapes = [(classes, place.rows.size, place.columns.size) for place in plan.places]
        images = [
            made[place.start :][: np.prod(shape)].reshape(shape)
            for place, shape in zip(plan.places, shapes, strict=True)
        ]
    return Result(images, buffers["valid"], buffers["cams"], buffers["arrived"])


def run_in_library(lib: ctypes.CDLL, plan: Plan, **given: np.ndarray) -> Result:
    """Runs a plan in one piece of memory for the workspace, as on a GPU.

    `given` are the features and weights, or the CAMs.
    """
    found = _outputs(plan)
    parts = plan.workspace
    memory = np.full(parts.size + 256, 0xAB, np.uint8)
    start = -memory.ctypes.data % 256
    workspace = memory[start : start + parts.size]
    workspace[parts.arrived : parts.arrived + parts.counters] = 0
    if "places" in found:
        workspace[parts.places : parts.places + found["places"].size] = found["places"]
    heatmaps = aligned(found["heatmaps"])
    arguments = plan.arguments(
        **{name: array.ctypes.data for name, array in given.items()},
        heatmaps=heatmaps.ctypes.data,
        valid=found["valid"].ctypes.data,
        workspace=workspace.ctypes.data,
    )
    for launch, argument in plan.launches(*arguments):
        grid = (ctypes.c_uint * 3)(*launch.grid)
        lib.run(launch.kernel.encode(), ctypes.byref(argument), grid, launch.block, launch.shared)
    if "cams" in found:
        cams = workspace[parts.cams : parts.cams + found["cams"].nbytes].view(np.float32)
        found["cams"] = cams.reshape(found["cams"].shape).copy()
    else:
        found["cams"] = given["cams"]
    found["heatmaps"] = heatmaps
    found["arrived"] = workspace[parts.arrived : parts.arrived + parts.counters].view(np.uint32)
    return _result(plan, found)


def aligned(array: np.ndarray) -> np.ndarray:
    """The same on an address that is a multiple of 16, and nothing but poison behind it."""
    memory = np.full(array.nbytes + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 16
    found = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def run_as_program(program: Path, folder: Path, plan: Plan, **given: np.ndarray):
    """Runs a plan in a process of its own, each buffer an allocation of its exact size.

    Returns:
        The finished process, and the result where it succeeded.
    """
    arguments = plan.arguments(heatmaps=0, valid=0, workspace=0)
    done, buffers = run_case(
        program, folder, {**given, **_outputs(plan)}, plan.launches(*arguments)
    )
    return done, None if buffers is None else _result(plan, buffers)


def run_case(
    program: Path,
    folder: Path,
    buffers: dict[str, np.ndarray],
    steps: Sequence[tuple[Launch, ctypes.Structure]],
):
    """Runs launches in a process of its own; fields of an argument are the buffers of their names.

    Returns:
        The finished process, and the buffers afterwards where it succeeded.
    """
    parts = [struct.pack("<q", len(buffers))]
    for buffer in buffers.values():
        data = np.ascontiguousarray(buffer).tobytes()
        parts += [struct.pack("<q", len(data)), data]
    parts.append(struct.pack("<q", len(steps)))
    for launch, argument in steps:
        parts.append(_step(launch, argument, list(buffers)))
    case = folder / "case.bin"
    case.write_bytes(b"".join(parts))
    done = subprocess.run([str(program), str(case)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done, None
    data, at = case.read_bytes(), 8
    left = {}
    for name, buffer in buffers.items():
        at += 8
        left[name] = np.frombuffer(data, buffer.dtype, buffer.size, at).reshape(buffer.shape)
        at += buffer.nbytes
    return done, left


def _step(launch: Launch, argument: ctypes.Structure, names: list[str]) -> bytes:
    name = launch.kernel.encode()
    pointers = [
        (getattr(type(argument), field).offset, names.index(field), 0)
        for field, kind, *_ in argument._fields_
        if kind is ctypes.c_void_p and field in names
    ]
    numbers = [*launch.grid, launch.block, launch.shared, ctypes.sizeof(argument)]
    return b"".join([
        struct.pack("<q", len(name)), name,
        struct.pack(f"<{len(numbers)}q", *numbers), bytes(argument),
        struct.pack("<q", len(pointers)), *(struct.pack("<3q", *p) for p in pointers),
    ])  # fmt: skip
