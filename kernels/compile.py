"""NVRTC: from clamp_combine.cu to a cubin for one GPU, kept in the cache.

This needs the packages cuda-bindings and NVRTC's wheel (or a CUDA toolkit), but no driver and
no GPU: which GPU to compile for is an argument.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from types import ModuleType
from typing import Any

from sigcam.core.files import key_of
from sigcam.kernels import cache
from sigcam.kernels.errors import CudaUnavailableError, KernelError

SOURCE = Path(__file__).with_name("clamp_combine.cu")
"""The file with the entry points; `source` puts it together with those that it includes."""

ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
"""Compute capabilities that the kernels are made for, times ten; no older GPU runs them."""

OPTIONS = ("-std=c++17", "-lineinfo")
"""Options of NVRTC and nvcc. Without fast math, division and square root follow IEEE 754."""

REPORT = ("--ptxas-options=-v",)
"""The option that makes NVRTC's log list what each kernel uses."""

INSTALL = (
    "pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12 (CUDA 12), of the same "
    "major version as cuda-bindings"
)


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made.

    Attributes:
        cubin: the machine code for one architecture.
        log: warnings, and the report where it was asked for.
    """

    cubin: bytes
    log: str


@dataclass(frozen=True)
class Resources:
    """What a thread or a block of a kernel uses.

    Attributes:
        registers: number of registers of a thread.
        stack: bytes of local memory of a thread.
        spills: bytes of spilled registers, stored and loaded.
        shared: bytes of static shared memory of a block.
    """

    registers: int
    stack: int
    spills: int
    shared: int


def source(path: Path | None = None) -> str:
    """Returns the kernels' source as one text, each included file once where it is first named.

    Lines that compilers name are those of the files.

    Args:
        path: the file to begin with; `SOURCE` when None.

    Example:
        >>> "#include" in source()
        False
    """
    return _inlined(SOURCE if path is None else path, set())


def _inlined(path: Path, seen: set[str]) -> str:
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        named = re.fullmatch(r'#include "(.+)"', line)
        if named is None:
            lines.append("" if line == "#pragma once" else line)
        elif named[1] not in seen:
            seen.add(named[1])
            lines.append(_inlined(path.with_name(named[1]), seen))
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append("")
    return "\n".join(lines) + "\n"


def nvrtc_version() -> tuple[int, int]:
    """Returns NVRTC's version, e.g. (13, 0).

    Raises:
        CudaUnavailableError: cuda-bindings or NVRTC's library is missing.
    """
    major, minor = _call("nvrtcVersion")
    return int(major), int(minor)


def supported() -> tuple[int, ...]:
    """Returns those of `ARCHITECTURES` that the installed NVRTC compiles for.

    Raises:
        CudaUnavailableError: cuda-bindings or NVRTC's library is missing.
    """
    known = set(map(int, _call("nvrtcGetSupportedArchs")))
    return tuple(number for number in ARCHITECTURES if number in known)


def cubin_for(capability: tuple[int, int]) -> bytes:
    """Returns the kernels for a GPU as a cubin, from the cache or compiled.

    Args:
        capability: compute capability, (major, minor).

    Raises:
        CudaUnavailableError: NVRTC is missing, or doesn't know this GPU.
        KernelError: the source doesn't compile.

    Example:
        module = driver.Module(cubin_for(driver.device(0).capability))
    """
    architecture = architecture_of(capability)
    text = source()
    version = "{}.{}".format(*nvrtc_version())
    key = key_of(text, *OPTIONS, f"sm_{architecture}", f"NVRTC {version}")
    kept = cache.read(key)
    if kept is not None:
        return kept
    made = compile_source(text, architecture).cubin
    cache.write(key, made)
    return made


def architecture_of(capability: tuple[int, int]) -> int:
    """Returns a compute capability as NVRTC counts it: (8, 6) is 86.

    Raises:
        CudaUnavailableError: too old for the kernels, or too new for the installed NVRTC.

    Example:
        >>> architecture_of((7, 0))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.kernels.errors.CudaUnavailableError: the GPU has compute capability 7.0; the ...
    """
    number = 10 * capability[0] + capability[1]
    name = f"{capability[0]}.{capability[1]}"
    if number < ARCHITECTURES[0]:
        raise CudaUnavailableError(
            f"the GPU has compute capability {name}; the kernels need 7.5 (Turing) or newer"
        )
    known = tuple(map(int, _call("nvrtcGetSupportedArchs")))
    if number not in known:
        version = "{}.{}".format(*nvrtc_version())
        raise CudaUnavailableError(
            f"the GPU has compute capability {name}, which NVRTC {version} "
            f"doesn't know (it knows {listed(known)}); install a newer one: {INSTALL}"
        )
    return number


def compile_source(
    text: str, architecture: int, options: Sequence[str] = OPTIONS, *, report: bool = False
) -> Compiled:
    """Compiles a text for one architecture.

    Args:
        text: the whole translation unit, as `source` returns it; it can include nothing.
        architecture: compute capability times ten, e.g. 86.
        options: NVRTC's options.
        report: whether the log shall list what each kernel uses; see `resources`.

    Raises:
        KernelError: it doesn't compile; carries the log.
        CudaUnavailableError: NVRTC is missing.

    Example:
        made = compile_source(source(), 86, report=True)
        resources(made.log)["enlarge_bilinear_f32"].registers
    """
    flags = [*options, *(REPORT if report else ())]
    with _program(text, SOURCE.name, f"sm_{architecture}", flags) as (program, log):
        return Compiled(_bytes(program, "nvrtcGetCUBIN"), log)


def compile_ptx(text: str, name: str, architecture: int = ARCHITECTURES[0]) -> bytes:
    """Compiles a text to PTX, which drivers compile for the GPU at hand.

    Args:
        text: the whole translation unit, as `source` returns it; it can include nothing.
        name: what messages call it.
        architecture: compute capability times ten of the oldest GPUs that run it.

    Returns:
        The PTX as text, without the zero that NVRTC ends it with.

    Raises:
        KernelError: it doesn't compile; carries the log.
        CudaUnavailableError: NVRTC is missing.

    Example:
        compile_ptx('extern "C" __global__ void nothing() {}', "nothing.cu")
    """
    with _program(text, name, f"compute_{architecture}", OPTIONS) as (program, _):
        return _bytes(program, "nvrtcGetPTX").rstrip(b"\0")


@contextmanager
def _program(
    text: str, name: str, target: str, options: Sequence[str]
) -> Iterator[tuple[Any, str]]:
    """Compiles a text, and gives NVRTC's program and log for as long as they are looked at."""
    nvrtc = _nvrtc()
    program = _call("nvrtcCreateProgram", text.encode(), name.encode(), 0, [], [])
    try:
        flags = [f"-arch={target}".encode(), *(option.encode() for option in options)]
        status = nvrtc.nvrtcCompileProgram(program, len(flags), flags)[0]
        log = _text(program, "nvrtcGetProgramLog")
        if int(status) != 0:
            raise KernelError(
                f"NVRTC couldn't compile {name} for {target} ({_described(status)}):\n{log}"
            )
        yield program, log
    finally:
        _call("nvrtcDestroyProgram", program)


def resources(log: str) -> dict[str, Resources]:
    """Returns what each kernel uses, by its name, from the log of a compilation with `report`.

    Raises:
        KernelError: the log has no report.

    Example:
        >>> log = (
        ...     "Compiling entry function 'enlarge' for 'sm_86': 0 bytes stack frame, "
        ...     "0 bytes spill stores, 0 bytes spill loads, Used 32 registers, 48 bytes smem"
        ... )
        >>> resources(log)
        {'enlarge': Resources(registers=32, stack=0, spills=0, shared=48)}
    """
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        # Functions that weren't inlined have lines of their own: their stacks count too.
        stacks = [int(n) for n in re.findall(r"(\d+) bytes stack frame", part)]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", part)]
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if registers is None or not stacks:
            raise KernelError(f"NVRTC's report of {name} can't be read:\n{part}")
        found[name] = Resources(
            registers=int(registers[1]),
            stack=sum(stacks),
            spills=sum(spills),
            shared=int(shared[1]) if shared else 0,
        )
    if not found:
        raise KernelError(f"NVRTC's log has no report of kernels:\n{log}")
    return found


def listed(architectures: Sequence[int]) -> str:
    """Returns architectures as text, with the points of compute capabilities.

    Example:
        >>> listed([86, 120])
        '8.6, 12.0'
    """
    return ", ".join(f"{number // 10}.{number % 10}" for number in architectures)


@once
def _nvrtc() -> ModuleType:
    try:
        return importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as exc:
        raise CudaUnavailableError(
            "the package cuda-bindings is not installed, which calls NVRTC; pip install "
            f'"cuda-bindings==13.*" (or 12.*, as the driver), and {INSTALL}'
        ) from exc


def _call(name: str, *arguments: Any) -> Any:
    try:
        status, *values = getattr(_nvrtc(), name)(*arguments)
    except RuntimeError as exc:  # also what cuda-pathfinder raises for a missing library
        if isinstance(exc, CudaUnavailableError):
            raise
        raise CudaUnavailableError(
            f"NVRTC's library, which compiles the kernels, was not found; {INSTALL} ({exc})"
        ) from exc
    if int(status) != 0:
        raise KernelError(f"{name} failed: {_described(status)}")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def _bytes(program: Any, name: str) -> bytes:
    found = bytearray(_call(f"{name}Size", program))
    _call(name, program, found)
    return bytes(found)


def _text(program: Any, name: str) -> str:
    return _bytes(program, name).rstrip(b"\0").decode("utf-8", "replace")


def _described(status: Any) -> str:
    text = _nvrtc().nvrtcGetErrorString(status)[1]
    return text.decode() if isinstance(text, bytes) else str(status)
