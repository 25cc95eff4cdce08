"""Options of a build: what can be chosen when an engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sigcam.core.annotations import check_fields
from sigcam.core.errors import UsageError
from sigcam.core.sidecar import PACKAGES, EnginePrecision, Hardware, parse_capability


@dataclass(frozen=True)
class Range:
    """Sizes that an engine takes along one axis.

    Attributes:
        low, usual, high: the smallest size, the one to tune for, and the largest.
    """

    low: int
    usual: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.usual <= self.high:
            raise UsageError(
                f"sizes must be 1 <= min <= opt <= max, got {self.low}, {self.usual}, {self.high}"
            )

    @classmethod
    def parse(cls, text: str) -> Range:
        """Parses three sizes, the smallest, the usual and the largest.

        Raises:
            UsageError: not three whole numbers in order.

        Example:
            >>> Range.parse("1/2/8")
            Range(low=1, usual=2, high=8)
        """
        parts = text.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise UsageError(f"sizes must be given as min/opt/max, such as 1/1/5, got {text!r}")
        return cls(*map(int, parts))


DEFAULT_BATCHES = Range(1, 1, 8)
"""Images in one run: a Session runs up to 8 at once unless it is told otherwise."""

DEFAULT_CLASSES = Range(1, 1, 10)
"""Classes for each image, of artifacts that take `class_ids`."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        batches: number of images in one run.
        classes: number of classes for each image, for an artifact that takes `class_ids`; None
            for `DEFAULT_CLASSES`.
        precision: "float32"; "float16": the logits are computed in float16, CAMs and evidence
            in float32 (see `float16.py`); "int8": the graph holds QuantizeLinear nodes, whose
            types are kept.
        tf32: whether float32 products may round their factors to 10 bits of mantissa, as
            TensorRT does by itself on GPUs since compute capability 8.0. This is faster, and
            outside the tolerance of the parity report.
        workspace: most device memory in bytes that one operation may use for intermediate
            values; None leaves it to TensorRT.
        timing_cache: file of timings that is read and brought up to date; only with the
            package "tensorrt". None for no such file.
        package: "tensorrt" or "tensorrt_rtx"; None for the first one that is installed.
        capabilities: compute capabilities such as "8.6" that the engine is for; only with
            the package "tensorrt_rtx". Empty for what that package takes by itself: 8.0 and
            later.
        device: number of the GPU that the package "tensorrt" builds on and for.
        hardware: what an engine of the package "tensorrt" shall run on: "gpu" for GPUs of the model
            that it is built on, which is the fastest; "capability" for all of its compute
            capability; "ampere" for all from 8.0 on (not Jetson).
        version_compatible: whether later versions of TensorRT, of the same major version, shall
            run the engine too; only with the package "tensorrt". Such an engine holds code for
            the processor, and is a little slower.

    Example:
        >>> options = BuildOptions(batches=Range(1, 4, 16), precision="float16")
        >>> options.batches.high, options.tf32
        (16, False)
    """

    batches: Range = DEFAULT_BATCHES
    classes: Range | None = None
    precision: EnginePrecision = "float32"
    tf32: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None
    package: str | None = None
    capabilities: tuple[str, ...] = ()
    device: int = 0
    hardware: Hardware = "gpu"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.package is not None and self.package not in PACKAGES:
            raise UsageError(f"package must be one of {', '.join(PACKAGES)}, got {self.package!r}")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace must be at least 1 byte, got {self.workspace}")
        if self.device < 0:
            raise UsageError(f"device must be at least 0, got {self.device}")
        if self.device and self.package == "tensorrt_rtx":
            raise UsageError(
                "device is for the package 'tensorrt', which builds on a GPU; 'tensorrt_rtx' "
                "builds for compute capabilities: use capabilities (--capability)"
            )
        for one in self.capabilities:
            parse_capability(one)
        if len(set(self.capabilities)) != len(self.capabilities):
            raise UsageError(f"a capability is given twice: {', '.join(self.capabilities)}")
