"""TensorRT's two packages: which one is used, and what they differ in.

| | tensorrt | tensorrt_rtx |
|---|---|---|
| an engine is built | on the GPU that it is for | anywhere, for named compute capabilities |
| it runs on | that GPU's compute capability and platform | all capabilities that were named |
| GPUs | all since Turing | those of its list: 9.0, 10.x and others aren't in it |
| kernels are chosen | while building, by timing them | at load, by compiling them |
| timing cache | saves most of a second build's time | has no effect |
| capture into a CUDA graph | tried | asked first (`is_stream_capturable`) |

Networks are strongly typed in both: the types are the graph's own. TensorRT 10 wants a flag
for that. TensorRT 11 and TensorRT-RTX know no other networks (NVIDIA, "Migrating from
TensorRT 10.x to 11.x"), and so they have no builder flags for float16 and int8 either.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sigcam.core.errors import BackendError, BackendUnavailableError, UsageError
from sigcam.core.sidecar import PACKAGES, SUFFIXES, PackageName, parse_capability
from sigcam.runtime.backends.tensorrt.log import logger_of

INSTALL: dict[PackageName, str] = {
    "tensorrt": 'pip install "sigcam[tensorrt]"',
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13 (or tensorrt-rtx-cu12 for a driver of CUDA 12)",
}

DISTRIBUTIONS: dict[PackageName, str] = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
}
"""What pip calls the packages, whose modules have other names."""

_OLDEST = (10, 13)
"""The oldest version of the package tensorrt that will do; the extra `tensorrt` asks for it."""


@dataclass(frozen=True)
class TensorRTPackage:
    """A TensorRT package that is installed.

    Attributes:
        name: the name that it is imported by.
        module: the imported module.
        version: the package's version, such as "10.13.3.9".
    """

    name: PackageName
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Returns whether this is TensorRT-RTX."""
        return self.name == "tensorrt_rtx"

    @property
    def suffix(self) -> str:
        """Returns what the names of its engines end in."""
        return SUFFIXES[self.name]

    @property
    def capabilities(self) -> dict[str, Any]:
        """Returns the compute capabilities that can be named for a build, such as "8.6"."""
        if not self.is_rtx:
            return {}
        members = self.module.ComputeCapability.__members__
        named = {_dotted(name): value for name, value in members.items() if name[:2] == "SM"}
        return dict(sorted(named.items(), key=lambda item: parse_capability(item[0])))

    @property
    def network_flags(self) -> int:
        """Returns the flags that a network is created with, so that it is strongly typed."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self.is_rtx or int(self.version.partition(".")[0]) > 10:
            return 0  # the flag is ignored there, and deprecated
        return 1 << int(flags.STRONGLY_TYPED)

    def logger(self) -> Any:
        """Returns the package's logger, which keeps the last errors; see `logger_of`."""
        return logger_of(self.module)

    def type_of(self, data_type: Any) -> str | None:
        """Returns the NumPy name of a data type of the package; None for one that NumPy lacks."""
        return _TYPES.get(data_type.name)

    def set_capabilities(self, config: Any, wanted: tuple[str, ...]) -> None:
        """Tells a builder which compute capabilities an engine is for.

        Args:
            config: the builder's configuration.
            wanted: compute capabilities such as "8.6"; none leaves it to the package.

        Raises:
            UsageError: a compute capability that this package doesn't build for, or any with a
                package that always builds for the GPU at hand.
            BackendError: the package refuses a compute capability that it offers.
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
                f"{unsupported(self, unknown)}, and build with `--package tensorrt` on a machine "
                "with that GPU"
            )
        config.num_compute_capabilities = len(wanted)
        for index, one in enumerate(wanted):
            if not config.set_compute_capability(known[one], index):
                raise BackendError(
                    f"{self.name} {self.version} refuses the compute capability {one}: "
                    f"{self.logger().take_errors()}; build for others, or with another version"
                )


def unsupported(package: TensorRTPackage, capabilities: Iterable[str]) -> str:
    """Returns the message about GPUs that TensorRT-RTX doesn't support, and what does.

    Args:
        package: TensorRT-RTX.
        capabilities: the compute capabilities that aren't in its list.

    Example:
        unsupported(choose("tensorrt_rtx"), ["9.0"])
        # "tensorrt_rtx 1.7.1.116 supports the compute capabilities 7.5, 8.0, ..., not 9.0; ..."
    """
    return (
        f"{package.name} {package.version} supports the compute capabilities "
        f"{', '.join(package.capabilities)}, not {', '.join(capabilities)}; the package tensorrt "
        f"supports it: {INSTALL['tensorrt']}"
    )


_TYPES = {
    "UINT8": "uint8",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def choose(package: str | None = None) -> TensorRTPackage:
    """Imports a TensorRT package.

    Args:
        package: name of the package; None takes the first of `PACKAGES` that is installed.

    Raises:
        UsageError: no package of that name is known.
        BackendUnavailableError: the package (without a name: each of them) isn't installed or
            can't be loaded; or the first one that is installed is too old.

    Example:
        choose().name  # "tensorrt", if it is installed, else "tensorrt_rtx"
    """
    if package is not None and package not in PACKAGES:
        raise UsageError(f"package must be one of {', '.join(PACKAGES)}, got {package!r}")
    candidates = PACKAGES if package is None else (package,)
    problems: list[str] = []
    cause: ImportError | OSError | None = None
    for name in candidates:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as exc:  # noqa: PERF203 (there are two)
            # A package that is there without its libraries fails with either.
            problems.append(f"{name} ({exc})")
            cause = cause or exc
        else:
            found = TensorRTPackage(name, module, str(module.__version__))
            _check_version(found)
            return found
    how = "; or ".join(f"{INSTALL[name]}" for name in candidates)
    raise BackendUnavailableError(
        f"TensorRT can't be imported: {'; '.join(problems)}; install it with {how}"
    ) from cause


def _check_version(package: TensorRTPackage) -> None:
    """Refuses a version of TensorRT that is too old."""
    parts = tuple(int(part) for part in package.version.split(".")[:2] if part.isdecimal())
    if not package.is_rtx and parts < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise BackendUnavailableError(
            f"the package tensorrt must be {oldest} or later, installed is {package.version}; "
            f'upgrade it: pip install "{DISTRIBUTIONS[package.name]}>={oldest}"'
        )


def _dotted(name: str) -> str:
    """Returns "12.0" for "SM120"."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"
