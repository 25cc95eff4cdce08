"""The one place that knows which TensorRT this is, and what the two differ in.

| | tensorrt | tensorrt_rtx |
|---|---|---|
| an engine is built | on the GPU that it is for | anywhere, for named compute capabilities |
| it runs on | that GPU's compute capability and platform | all capabilities that were named |
| kernels are chosen | while building, by timing them | at load, by compiling them |
| timing cache | saves most of a second build's time | has no effect |
| capture into a CUDA graph | tried | asked first (`is_stream_capturable`) |

Networks are strongly typed in both: the types are the graph's own. TensorRT 10 wants a flag
for that; TensorRT 11 and TensorRT-RTX know no other networks (NVIDIA, "Migrating from
TensorRT 10.x to 11.x"), and so no builder flags for float16 and int8 either.
"""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sigcam.runtime.errors import BackendUnavailableError, UsageError

Package = Literal["tensorrt", "tensorrt_rtx"]

PACKAGES: tuple[Package, ...] = get_args(Package)
"""The preferred one first."""

INSTALL: dict[Package, str] = {
    "tensorrt": 'pip install "sigcam[tensorrt]"',
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13 (or tensorrt-rtx-cu12 for a driver of CUDA 12)",
}

_KEPT_ERRORS = 8


@dataclass(frozen=True)
class Seam:
    """A TensorRT package that is installed.

    Attributes:
        name: the name that it is imported by.
        module: the module.
        version: its version.
    """

    name: Package
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.name == "tensorrt_rtx"

    @property
    def suffix(self) -> str:
        """What the names of its engines end in."""
        return ".rtx.engine" if self.is_rtx else ".engine"

    @property
    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities that can be named for a build, as "8.6"; empty if none can."""
        if not self.is_rtx:
            return {}
        members = self.module.ComputeCapability.__members__
        named = {_dotted(name): value for name, value in members.items() if name[:2] == "SM"}
        return dict(sorted(named.items(), key=lambda item: parse_capability(item[0])))

    @property
    def network_flags(self) -> int:
        """What a network is created with, so that it is strongly typed."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self.is_rtx or int(self.version.partition(".")[0]) > 10:
            return 0  # the flag is ignored there, and deprecated
        return 1 << int(flags.STRONGLY_TYPED)

    def logger(self) -> Any:
        """A new logger of the package that keeps the last errors, in `errors`."""
        return _logger(self.module)

    def type_of(self, data_type: Any) -> str | None:
        """The NumPy name of a data type of the package; None for one that NumPy lacks."""
        return _TYPES.get(data_type.name)

    def set_capabilities(self, config: Any, wanted: tuple[str, ...]) -> None:
        """Names the compute capabilities that an engine is for.

        Raises:
            UsageError: one that this package doesn't build for, or any with a package that
                always builds for the GPU at hand.
        """
        if not wanted:
            return
        known = self.capabilities
        if not known:
            raise UsageError(
                f"capability can't be chosen with the package {self.name!r}, which builds for "
                "the GPU of this machine; use the package 'tensorrt_rtx', or build where the "
                "engine will run"
            )
        unknown = [one for one in wanted if one not in known]
        if unknown:
            raise UsageError(
                f"{self.name} {self.version} builds for the compute capabilities "
                f"{', '.join(known)}, not for {', '.join(unknown)}"
            )
        config.num_compute_capabilities = len(wanted)
        for index, one in enumerate(wanted):
            config.set_compute_capability(known[one], index)


_TYPES = {
    "UINT8": "uint8",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def choose(package: str | None = None) -> Seam:
    """The package of that name; without one, the first of `PACKAGES` that is installed.

    Raises:
        UsageError: no such package is known.
        BackendUnavailableError: it, or both, aren't installed or can't be loaded.
    """
    if package is not None and package not in PACKAGES:
        raise UsageError(f"package must be one of {', '.join(PACKAGES)}, got {package!r}")
    candidates = PACKAGES if package is None else (package,)
    problems: list[str] = []
    cause: ImportError | None = None
    for name in candidates:
        try:
            module = importlib.import_module(name)
        except ImportError as exc:  # noqa: PERF203 (there are two)
            # A package that is there without its libraries fails with ImportError as well.
            problems.append(f"{name} ({exc})")
            cause = cause or exc
        else:
            return Seam(name, module, str(module.__version__))
    how = "; or ".join(f"{INSTALL[name]}" for name in candidates)
    raise BackendUnavailableError(
        f"TensorRT can't be imported: {'; '.join(problems)}; install it with {how}"
    ) from cause


def parse_capability(text: str) -> tuple[int, int]:
    """(8, 6) from "8.6".

    Raises:
        UsageError: not two numbers with a point between them.
    """
    major, point, minor = text.partition(".")
    if not (point and major.isdecimal() and minor.isdecimal()):
        raise UsageError(f"a compute capability must look like 8.6, got {text!r}")
    return int(major), int(minor)


def _dotted(name: str) -> str:
    """From "SM120" to "12.0"."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _logger(module: Any) -> Any:
    grave = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps the last errors; warnings are the builder's own business."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity in grave:
                self.errors.append(message.strip())

        def told(self) -> str:
            """The errors since the last call of this, as one line."""
            errors, self.errors = list(self.errors), deque(maxlen=_KEPT_ERRORS)
            return "; ".join(dict.fromkeys(errors)) or "TensorRT gave no reason"

    return Log()
