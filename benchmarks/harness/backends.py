"""The backends and precisions that are measured, and why one can't be had here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import flags
from sigcam.core.errors import BackendUnavailableError, SigcamError
from sigcam.runtime.backends import BACKENDS, backend_class
from sigcam.runtime.backends.base import Backend, BackendOptions

THREADS = 2


class UnavailableError(Exception):
    """A backend, precision or package can't be measured here; the text says why."""


@dataclass(frozen=True)
class BackendSetup:
    """One row of the table of backends.

    Attributes:
        name: as tables show it.
        backend: its name in `BACKENDS`.
        options: further `BackendOptions`.
        any_flag: instruction sets of which the processor must have one; none are needed
            where it is empty.
        quantized: whether it runs the file that `sigcam quantize` makes.
    """

    name: str
    backend: str
    options: dict[str, Any] = field(default_factory=dict)
    any_flag: tuple[str, ...] = ()
    quantized: bool = False


BF16 = ("amx_bf16", "avx512_bf16", "bf16")
FP32 = BackendSetup("ort fp32", "ort")
# int8 runs on any processor; how fast it is depends on its instructions, which are recorded.
SETUPS = (
    FP32,
    BackendSetup("ort int8", "ort", quantized=True),
    BackendSetup("openvino fp32", "openvino"),
    BackendSetup("openvino bf16", "openvino", {"precision": "bf16"}, BF16),
    BackendSetup("openvino int8", "openvino", quantized=True),
)


def check(setup: BackendSetup) -> None:
    """Refuses what can't run here, before anything is exported for it.

    Raises:
        UnavailableError: with the reason.
    """
    if setup.any_flag and not flags().intersection(setup.any_flag):
        raise UnavailableError(f"not on this processor (needs {' or '.join(setup.any_flag)})")
    if setup.backend not in BACKENDS:
        raise UnavailableError(f"this version of sigcam has no backend {setup.backend!r}")
    unknown = set(setup.options) - {one.name for one in fields(BackendOptions)}
    if unknown:
        raise UnavailableError(f"this version of sigcam has no option {', '.join(sorted(unknown))}")


def open_graph(
    setup: BackendSetup, path: Path, threads: int = THREADS, batch: int | None = None
) -> Backend:
    """Loads a graph. Backends of one process wait without spinning, or they'd slow each other.

    Args:
        setup: that runs it.
        path: of the graph.
        threads: of one inference.
        batch: most images in a run, as `load` has it; None for any number.

    Raises:
        UnavailableError: with the reason.
    """
    check(setup)
    kind = backend_class(setup.backend)
    given = {"threads": threads, "spinning": False, **setup.options}
    try:
        known = {k: v for k, v in given.items() if k in kind.understands}
        options = BackendOptions(**known, batch_size=batch)
        return kind.open(path, options)
    except BackendUnavailableError as exc:
        raise UnavailableError(str(exc)) from exc
    except SigcamError as exc:
        if setup.options:  # a precision that this backend refuses on this processor
            raise UnavailableError(str(exc)) from exc
        raise
