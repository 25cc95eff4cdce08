"""`sigcam kernels`: the CUDA kernels made ahead of time, and what there is to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from sigcam.cli.common import EXIT_FAILED, echo, fail, reports_errors, say


@click.group(name="kernels")
def command() -> None:
    """Compile the CUDA kernels ahead of time, or list what there is to run them."""


@command.command(name="build")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("clamp_combine.fatbin"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    help="A compute capability, e.g. 8.6; may be repeated. All that nvcc knows, from 7.5 on, "
    "without it.",
)
@reports_errors
def build(out: Path, architectures: tuple[str, ...]) -> None:
    """Compile the kernels with nvcc to one file for many GPUs.

    Set SIGCAM_KERNELS to the file, and nothing is compiled at first use.
    """
    from sigcam.core.errors import UsageError
    from sigcam.core.files import check_writable
    from sigcam.core.inputs import keep
    from sigcam.kernels import fatbin
    from sigcam.kernels.compile import listed
    from sigcam.kernels.errors import KernelError

    numbers = [_number(text) for text in architectures] or None
    keep(_sources())
    check_writable(out)
    say("compiling with nvcc; this takes some seconds for each architecture")
    try:
        made = fatbin.build(out, numbers)
    except KernelError as exc:
        fail(str(exc), EXIT_FAILED)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    echo(f"{made.path}: {made.size / 1e6:.1f} MB, nvcc {made.version}")
    echo(f"for {listed(made.architectures)}, and PTX for newer ones")


@command.command(name="ptx")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("flat.ptx"),
    show_default=True,
    help="The file to write.",
)
@reports_errors
def ptx(out: Path) -> None:
    """Compile with NVRTC the kernel that makes heatmaps in programs of other languages.

    docs/kernels.md says how it is launched.
    """
    from sigcam.core.files import check_writable, write_bytes
    from sigcam.core.inputs import keep
    from sigcam.kernels import flat
    from sigcam.kernels.errors import KernelError

    keep(_sources())
    check_writable(out)
    try:
        made = flat.ptx()
    except KernelError as exc:
        fail(str(exc), EXIT_FAILED)
    write_bytes(out, made)
    echo(f"{out}: {len(made) / 1e3:.0f} kB, for compute capability 7.5 and later")


@command.command(name="info")
def info() -> None:
    """Print the cache's folder, NVRTC, nvcc and the GPUs, and what of them is missing."""
    from sigcam.kernels import cache, driver, fatbin
    from sigcam.kernels import compile as compiling

    rows: dict[str, Callable[[], str]] = {
        "cache": lambda: _cache(cache.cache_dir()),
        "nvrtc": lambda: "{}.{}".format(*compiling.nvrtc_version()),
        "compiles for": lambda: compiling.listed(compiling.supported()),
        "nvcc": fatbin.find_nvcc,
        "driver": lambda: "CUDA {}.{}".format(*driver.driver_version()),
        "GPUs": _gpus,
    }
    for name, value in rows.items():
        echo(f"{name:<14} {_or_missing(value)}")


def _sources() -> list[Path]:
    """Returns the kernels' files, which no command may write over."""
    from sigcam.kernels.compile import SOURCE

    return sorted(SOURCE.parent.glob("*.cu*"))


def _or_missing(value: Callable[[], str]) -> str:
    from sigcam.kernels.errors import KernelError

    try:
        return value()
    except KernelError as exc:
        return f"missing: {exc}"


def _cache(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.glob("*.bin")]
    return f"{folder} ({len(sizes)} entries, {sum(sizes) / 1e6:.1f} MB)"


def _gpus() -> str:
    from sigcam.kernels import driver

    return "; ".join(
        f"{gpu.ordinal}: {gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        for gpu in driver.devices()
    )


def _number(text: str) -> int:
    """Turns "8.6" into 86."""
    from sigcam.core.errors import UsageError

    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise UsageError(f"--arch must be a compute capability such as 8.6, got {text!r}")
    return 10 * int(major) + int(minor)
