"""Checks and times the GPU path on a machine with an NVIDIA GPU.

    python benchmarks/gpu/check.py [--only CHECK] [--list] [--out FILE.json] [--model FILE.onnx]
        [--network NAME] [--rounds N] [--seconds N]

It runs from a checkout: beside NumPy, cuda-bindings and NVRTC (which torch brings) nothing needs to
be installed, sigcam neither. It compiles the map kernels; compares them with NumPy over shapes,
types and interpolations, over repeated runs and several streams; runs them beside torch and CuPy
and under compute-sanitizer where these are; times them; compares every GPU backend that is
installed with the CPU path, on networks that it exports and on artifacts of yours; then times the
backends without and with maps. Each check has a process of its own, so that one that fails, hangs
or crashes leaves the others as they are. What needs a package that isn't there is left out, and
said once.

The results go to one JSON file, which is written after each check and can be sent in: it has the
GPU's name, versions and figures, and no names of users, machines or folders. Progress goes to
standard error, a summary of two screens to standard output.

Exit codes: 0 all passed or were skipped because something isn't installed, 1 a check failed or
the kernels' values were asked for and never compared, 2 wrong options, 3 there is no GPU to use.
For the backends install `"sigcam[export,gpu]"`, `[ort-tensorrt]` or `[tensorrt]`; their networks
take about 5 GB of disk in a temporary folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, which looks for modules in its own folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu import installed
from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu import sanitizer as gpu_sanitizer
from benchmarks.gpu.report import (
    CheckFailed,
    CheckSkipped,
    Report,
    Result,
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
    """The checks in their order: what is quick and decides comes first."""
    yield from ("compile", "values", "repeats", "streams", "interop torch", "interop cupy")
    yield from ("times", "combine", "enlarge", "host", "pool", "copies", "peers")
    yield from (f"sanitizer {tool}" for tool in gpu_sanitizer.TOOLS)
    there = [one for one in installed.BACKENDS if installed.missing_backend(one) is None]
    yield from (f"backend {one}" for one in installed.BACKENDS if one not in there)
    # Nothing is exported that no backend would run.
    yield from (f"export {network}" for network in networks if there)
    for backend in there:
        # Each file for itself: TensorRT takes minutes for the engine of one.
        for network in networks:
            yield from (f"compare {backend} {network} {n}" for n in installed.compared(network))
        yield from (f"model {backend} {number}" for number in range(len(models)))
    for backend in there:
        yield from (f"latency {backend} {network}" for network in networks)


def chosen(every: Sequence[str], only: Sequence[str]) -> list[str]:
    """Those checks that begin with one of the words of `only`; all where it is empty.

    Raises:
        ValueError: words that no check begins with.
    """
    for words in only:
        if not any(_begins(name, words) for name in every):
            kinds = ", ".join(dict.fromkeys(name.split()[0] for name in every))
            raise ValueError(f"no check begins with {words!r}; there are {kinds} (see --list)")
    return [name for name in every if not only or any(_begins(name, words) for words in only)]


def _begins(name: str, words: str) -> bool:
    parts = words.split()
    return bool(parts) and name.split()[: len(parts)] == parts


def find(name: str, folder: Path, models: Sequence[Path], rounds: int) -> Check:
    """The check of a name; what it needs is imported when it is asked for."""
    kind, *rest = name.split()
    if kind in _OF_KERNELS:
        return _OF_KERNELS[kind]
    if kind in _TIMINGS:
        from benchmarks.gpu import timings

        return getattr(timings, f"check_{kind}")  # type: ignore[no-any-return]
    if kind == "interop":
        from benchmarks.gpu import interop

        return {"torch": interop.check_torch, "cupy": interop.check_cupy}[rest[0]]
    if kind == "peers":
        from benchmarks.gpu import peers

        return peers.check_peers
    if kind == "sanitizer":
        return functools.partial(gpu_sanitizer.check_sanitizer, rest[0])
    if kind == "backend":
        return functools.partial(_missing, rest[0])
    return _of_backends(kind, rest, folder, models, rounds)


_OF_KERNELS: dict[str, Check] = {
    "compile": lambda: gpu_kernels.check_compiling(),
    "values": lambda: gpu_kernels.check_values(gpu_kernels.OnGpu()),
    "repeats": lambda: gpu_kernels.check_repeats(gpu_kernels.OnGpu()),
    "streams": lambda: gpu_kernels.OnGpu().check_streams(),
}
_TIMINGS = ("times", "combine", "enlarge", "host", "pool", "copies")


def _missing(backend: str) -> dict[str, Any]:
    raise CheckSkipped(installed.missing_backend(backend) or "it is installed")


def _of_backends(
    kind: str, rest: Sequence[str], folder: Path, models: Sequence[Path], rounds: int
) -> Check:
    from benchmarks.gpu import backends

    if kind == "export":
        return functools.partial(backends.export_network, rest[0], folder / rest[0])
    backend, what, *more = rest
    if kind == "model":
        path, title = models[int(what)], f"model {what}"
        place = folder / "models"
        place.mkdir(exist_ok=True)
        return functools.partial(backends.check_backend, backend, path, place, title)
    if kind == "latency":
        return functools.partial(backends.check_latency, backend, folder / what, rounds)
    path = folder / what / f"{more[0]}.onnx"
    return functools.partial(backends.check_backend, backend, path, folder / what, more[0])


def outcome(check: Callable[[], Check]) -> dict[str, Any]:
    """Finds a check, runs it and tells how it ended, as `run_isolated` reads it."""
    try:
        figures = check()()
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
    out: Path,
    seconds: float,
) -> None:
    """Runs the checks one after the other, each in a process of its own.

    The report is written after each, so that a run that is cut off leaves what was done.
    """
    end = time.monotonic() + seconds
    for name in wanted:
        file = folder / "result.json"
        left = end - time.monotonic()
        if left > 0:
            result = run_isolated(name, command(name, file), file, min(TIMEOUT, left), hidden)
        else:
            result = Result(name, "skipped", f"the {seconds:g} seconds were over", 0.0)
        report.results.append(result)
        report.write(out)
        print(result, file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="check.py", description="Checks and times the GPU path; see the top of this file."
    )
    parser.add_argument("--only", action="append", default=[], metavar="CHECK",
                        help="only the checks that begin so, such as values or 'compare ort-cuda'; "
                        "can be repeated")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the checks; none is run")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="the report")
    parser.add_argument("--model", dest="models", action="append", default=[], type=_file,
                        help="also compare this artifact; can be repeated")  # fmt: skip
    parser.add_argument("--network", dest="networks", action="append", default=[],
                        choices=list(installed.NETWORKS),
                        help="only these; can be repeated")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=300, help="of a latency, at least 100")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="no check begins after that; others count as skipped")  # fmt: skip
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(given)
    if parsed.rounds < 100:
        parser.error("--rounds must be at least 100")
    every = list(names(parsed.networks or tuple(installed.NETWORKS), parsed.models))
    try:
        parsed.wanted = chosen(every, parsed.only)
    except ValueError as exc:
        parser.error(str(exc))
    return parsed


def _file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def main(given: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    asked = arguments(given)
    if asked.one is not None and asked.folder is not None:
        found = functools.partial(find, asked.one, asked.folder, asked.models, asked.rounds)
        write_text(asked.out, json.dumps(outcome(found)))
        return 0
    if asked.list:
        print("\n".join(asked.wanted))
        return 0
    reason = no_gpu()
    if reason is not None:
        print(f"no NVIDIA GPU can be used: {reason}")
        return EXIT_NO_GPU
    report = Report(machine(driver.devices(), driver.driver_version()), versions())
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)

        def command(name: str, file: Path) -> list[str]:
            own = [sys.executable, str(Path(__file__).resolve()), "--one", name]
            given = [part for model in asked.models for part in ("--model", str(model))]
            where = ["--folder", str(work), "--out", str(file), "--rounds", str(asked.rounds)]
            return [*own, *where, *given]

        hidden = [*asked.models, *(model.parent for model in asked.models)]
        run_all(report, asked.wanted, command, work, hidden, asked.out, asked.seconds)
    must = "values" in asked.wanted
    print(report.text(must_compare=must))
    print(f"the report is in {asked.out}")
    return report.exit_code(must_compare=must)


if __name__ == "__main__":
    sys.exit(main())
