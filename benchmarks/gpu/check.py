"""Checks and times the GPU path on a machine with an NVIDIA GPU.

    python -m benchmarks.gpu.check [--out FILE.json] [--model FILE.onnx] [--network NAME]
        [--rounds N]

Compiles the map kernels; compares them with NumPy over shapes, types and interpolations, over
repeated runs and several streams; runs them under compute-sanitizer where that is installed;
compares every GPU backend that is installed with the CPU path, on networks that it exports
and on artifacts of yours; then times them without and with maps. Each check has a process of
its own, so that one that fails, hangs or crashes leaves the others as they are.

The results go to a JSON file that can be sent in: it has the GPU's name, versions and
figures, and no names of users, machines or folders.

Exit codes: 0 all passed or were skipped because a backend isn't installed, 1 a check failed or
the kernels' values were never compared, 3 there is no GPU to use. It needs
`pip install "sigcam[export,gpu]"` (and `[tensorrt]` for that backend), and about 5 GB of disk
for the exported networks in a temporary folder.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu import backends as gpu_backends
from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu import sanitizer as gpu_sanitizer
from benchmarks.gpu.report import (
    CheckFailed,
    CheckSkipped,
    Report,
    anonymous,
    machine,
    run_isolated,
    versions,
)
from sigcam.core.files import write_text
from sigcam.kernels import driver
from sigcam.kernels.errors import CudaUnavailableError, KernelError

EXIT_NO_GPU = 3
TIMEOUT = 1800.0
"""Seconds for a check; TensorRT takes minutes to build an engine."""

Check = Callable[[], dict[str, Any]]


def names(networks: Sequence[str], models: Sequence[Path]) -> Iterator[str]:
    """The checks in their order."""
    yield from ("compile", "values", "repeats", "streams")
    yield from (f"sanitizer {tool}" for tool in gpu_sanitizer.TOOLS)
    yield from (f"export {network}" for network in networks)
    for backend in gpu_backends.BACKENDS:
        # Each file for itself: TensorRT takes minutes for the engine of one.
        for network in networks:
            yield from (f"compare {backend} {network} {n}" for n in gpu_backends.compared(network))
        yield from (f"model {backend} {number}" for number in range(len(models)))
    for backend in gpu_backends.BACKENDS:
        yield from (f"latency {backend} {network}" for network in networks)


def find(name: str, folder: Path, models: Sequence[Path], rounds: int) -> Check:
    """The check of a name."""
    kind, *rest = name.split()
    if kind == "compile":
        return gpu_kernels.check_compiling
    if kind == "values":
        return lambda: gpu_kernels.check_values(gpu_kernels.OnGpu())
    if kind == "repeats":
        return lambda: gpu_kernels.check_repeats(gpu_kernels.OnGpu())
    if kind == "streams":
        return lambda: gpu_kernels.OnGpu().check_streams()
    if kind == "sanitizer":
        return functools.partial(gpu_sanitizer.check_sanitizer, rest[0])
    if kind == "export":
        return functools.partial(gpu_backends.export_network, rest[0], folder / rest[0])
    backend, what, *more = rest
    if kind == "model":
        path, title = models[int(what)], f"model {what}"
        models = folder / "models"
        models.mkdir(exist_ok=True)
        return functools.partial(gpu_backends.check_backend, backend, path, models, title)
    if kind == "latency":
        return functools.partial(gpu_backends.check_latency, backend, folder / what, rounds)
    path = folder / what / f"{more[0]}.onnx"
    return functools.partial(gpu_backends.check_backend, backend, path, folder / what, more[0])


def outcome(check: Check) -> dict[str, Any]:
    """Runs a check and tells how it ended, as `run_isolated` reads it."""
    try:
        figures = check()
    except CheckSkipped as exc:
        return {"status": "skipped", "detail": str(exc), "figures": {}}
    except CheckFailed as exc:
        return {"status": "failed", "detail": str(exc), "figures": exc.figures}
    except Exception as exc:  # whatever it is, it is the check's result
        return {"status": "failed", "detail": f"{type(exc).__name__}: {exc}", "figures": {}}
    return {"status": "passed", "detail": "", "figures": figures}


def no_gpu() -> str | None:
    """Why no GPU can be used, in one line; None where one can."""
    try:
        driver.available()
    except (CudaUnavailableError, KernelError) as exc:
        return " ".join(anonymous(str(exc)).split())
    return None


def run_all(
    report: Report,
    wanted: Sequence[str],
    command: Callable[[str, Path], list[str]],
    folder: Path,
    hidden: Sequence[Path],
) -> None:
    """Runs the checks one after the other, each in a process of its own."""
    for name in wanted:
        file = folder / "result.json"
        result = run_isolated(name, command(name, file), file, TIMEOUT, hidden)
        report.results.append(result)
        click.echo(str(result))


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("gpu_check.json"),
    show_default=True, help="The report.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, help="Also compare this artifact; can be repeated.",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
)  # fmt: skip
@click.option(
    "--network", "networks", multiple=True, type=click.Choice(list(gpu_backends.NETWORKS)),
    help="Only these; can be repeated.  [default: all]",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=100), default=300, show_default=True)
@click.option("--one", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(
    out: Path,
    models: tuple[Path, ...],
    networks: tuple[str, ...],
    rounds: int,
    one: str | None,
    folder: Path | None,
) -> None:
    """Checks and times the GPU path; see the top of this file."""
    if one is not None and folder is not None:
        write_text(out, json.dumps(outcome(find(one, folder, models, rounds))))
        return
    reason = no_gpu()
    if reason is not None:
        click.echo(f"no NVIDIA GPU can be used: {reason}")
        sys.exit(EXIT_NO_GPU)
    report = Report(machine(driver.devices(), driver.driver_version()), versions())
    for title, facts in (("machine", report.machine), ("versions", report.versions)):
        click.echo(f"{title}: {json.dumps(facts)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)

        def command(name: str, file: Path) -> list[str]:
            base = [
                sys.executable,
                "-m",
                "benchmarks.gpu.check",
                "--one",
                name,
                "--folder",
                str(work),
            ]
            given = [part for model in models for part in ("--model", str(model))]
            return [*base, *given, "--out", str(file), "--rounds", str(rounds)]

        wanted = list(names(networks or tuple(gpu_backends.NETWORKS), models))
        hidden = [*models, *(model.parent for model in models)]
        run_all(report, wanted, command, work, hidden)
    report.write(out)
    click.echo(report.table())
    click.echo(f"{report.summary()}; the report is in {out}")
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
