"""The contract between a Session and a backend.

A backend is one class: it opens an artifact, says what its inputs and outputs are, and runs it.
The public `infer` checks, the private `_infer` computes.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from sigcam.core.annotations import check_fields
from sigcam.core.cpus import thread_limit
from sigcam.core.errors import BackendError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.core.processes import OwnProcess, keep_in_children, no_pickle
from sigcam.core.types import Array
from sigcam.images.preprocess import Placement

Precision = Literal["fp32", "fp16", "bf16"]
"""The type that a backend may compute in; see `BackendOptions`."""

Mode = Literal["latency", "throughput"]
"""What a backend is tuned for; see `BackendOptions`."""

HeatmapKind = Literal["float32", "uint8", "lazy"]
"""How a device makes heatmaps; see `HeatmapOptions`."""

ConvSearch = Literal["heuristic", "exhaustive", "default"]
"""How algorithms for convolutions are chosen; see `BackendOptions`."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        name: the tensor's name in the graph.
        dtype: type of its values.
        shape: its sizes, with None for a dynamic one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{sizes}]"

    def fits(self, array: Array) -> bool:
        """Returns whether `array` has this dtype and a shape that matches."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(w is None or w == s for w, s in zip(self.shape, array.shape, strict=True))
        )


@dataclass(frozen=True)
class HeatmapOptions:
    """How a backend that can makes heatmaps on its device.

    Attributes:
        made: "float32" and "uint8" for heatmaps of all classes with each batch, of 4 bytes or of
            1 for each pixel; "lazy" for CAMs alone, from which a heatmap is made on the CPU when
            it is asked for.
        limit: most bytes that the heatmaps of one batch may take in memory.

    Example:
        >>> HeatmapOptions("uint8").itemsize
        1
    """

    made: HeatmapKind = "float32"
    limit: int = 2 << 30

    def __post_init__(self) -> None:
        check_fields(self)
        if self.limit < 1:
            raise UsageError(f"heatmap_limit must be at least 1 byte, got {self.limit}")

    @property
    def itemsize(self) -> int:
        """Returns the bytes of a heatmap's pixel."""
        return 1 if self.made == "uint8" else 4

    def made_of(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Names those of a graph's outputs of which a device makes what is asked for.

        Nothing remains to be made of CAMs that the graph gives, where CAMs alone are wanted.

        Example:
            >>> HeatmapOptions().made_of(["logits", "features", "cam_weights"])
            ('features', 'cam_weights')
            >>> HeatmapOptions().made_of(["logits", "features", "cams"])
            ('cams',)
            >>> HeatmapOptions("lazy").made_of(["logits", "cams"])
            ()
        """
        given = set(outputs)
        if "cams" in given:
            return () if self.made == "lazy" else ("cams",)
        weighted = ("features", "cam_weights")
        return weighted if given.issuperset(weighted) else ()


@dataclass(frozen=True)
class BackendOptions:
    """What backends can be asked for. Each backend lists those that it understands.

    Attributes:
        threads: threads that one inference may use; None leaves it to the backend, within what
            this process may use of the machine (`allowed_threads`).
        spinning: whether the backend's idle threads wait by spinning. That makes calls that
            follow each other a little faster, and takes cores from everything else in the
            process meanwhile, other models first of all.
        device: number of the GPU, as CUDA counts them.
        precision: the type that products may be computed in. "fp32" keeps them in full float32
            where the backend can be told so; "fp16" and "bf16" let the backend take that type
            where it is faster.
        mode: "latency" gives one call all threads; "throughput" serves several calls at once,
            each on fewer threads, so that more of them are done in a second.
        cache: folder for engines that are built, or models that are compiled, at first use;
            None leaves it to the backend whether and where it keeps them.
        batch_size: most images in one run; None for any number. This is a hint, which no
            backend refuses: one that compiles for shapes may compile for this one, and then
            refuses larger ones.
        max_classes: most classes for each image in one run; a hint likewise.
        heatmaps: how the backend makes heatmaps, if it does.
        conv_search: how cuDNN's algorithm for a convolution is found. "heuristic" asks cuDNN;
            "exhaustive" times all algorithms anew for each shape, every batch size included,
            which takes hundreds of milliseconds for a network and may give faster ones;
            "default" takes one that always works.
    """

    threads: int | None = None
    spinning: bool = True
    device: int = 0
    precision: Precision = "fp32"
    mode: Mode = "latency"
    cache: Path | None = None
    batch_size: int | None = field(default=None, metadata={"hint": True})
    max_classes: int = field(default=10, metadata={"hint": True})
    heatmaps: HeatmapOptions = field(default_factory=HeatmapOptions, metadata={"hint": True})
    conv_search: ConvSearch = "heuristic"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("threads", "batch_size", "max_classes"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} must be at least 1, got {count}")
        if self.device < 0:
            raise UsageError(f"device must be at least 0, got {self.device}")

    @property
    def allowed_threads(self) -> int | None:
        """Returns `threads`; or the limit of this process, where it has one; or else None.

        Example:
            >>> BackendOptions(threads=2).allowed_threads
            2
        """
        return thread_limit() if self.threads is None else self.threads

    def given(self) -> list[str]:
        """Returns the names of the options, hints aside, that differ from their defaults.

        Example:
            >>> BackendOptions(threads=2, batch_size=8).given()
            ['threads']
        """
        wishes = [one for one in fields(self) if not one.metadata.get("hint")]
        return [one.name for one in wishes if getattr(self, one.name) != one.default]


@dataclass(frozen=True)
class HeatmapRequest:
    """The heatmaps that are wanted of a batch.

    Attributes:
        placements: where each image's input lies in the image, in the order of the batch.
        clamp: whether negative weights count as 0 (NWC).
        signed: whether CAMs keep the sign of the weighted sum.
        options: how heatmaps are made.
        made_of: names of the outputs that they are made of, which stay on the device: features
            and CAM weights, or the graph's own CAMs, which are clamped and signed already.
    """

    placements: tuple[Placement, ...]
    clamp: bool
    signed: bool = False
    options: HeatmapOptions = HeatmapOptions()
    made_of: tuple[str, ...] = ("features", "cam_weights")


@dataclass(frozen=True, eq=False)
class DeviceHeatmaps:
    """Heatmaps that a device made.

    Attributes:
        cams: CAMs, float32 [B, K, h, w], >= 0 unless signed.
        heatmaps: the heatmaps of each image [K, H, W] at its own size, float32 in [0, 1] or uint8
            (255 times as much, rounded); None where only CAMs were asked for.
        valid: which heatmaps are valid, bool [B, K]; one that isn't is 0 everywhere.
    """

    cams: Array
    heatmaps: tuple[Array, ...] | None
    valid: Array


class Backend(abc.ABC):
    """A backend with one artifact loaded.

    `infer` may be called from several threads at once. The arrays it returns belong to
    the caller: no later call overwrites them.
    """

    name: ClassVar[str]
    callers_compute: ClassVar[bool] = False
    """Whether the thread that calls `infer` is one of the `threads` that compute, on a processor;
    the others work for all calls at the same time."""
    makes_heatmaps: bool = False
    """Whether `infer_heatmaps` works: what heatmaps are made of then stays on the device."""
    explains_on_device: ClassVar[bool] = False
    """Whether it takes images that lie on the device, as `cuda.on_device.DeviceRunner` says."""
    understands: ClassVar[frozenset[str]] = frozenset({"threads", "spinning"})
    """Names of the `BackendOptions` that mean something here; the others are refused."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    _own: OwnProcess | None = None
    """The process that opened it; None where `open` didn't."""

    @classmethod
    def open(cls, model: Path | ModelFile, options: BackendOptions) -> Backend:
        """Loads a model. Nothing of its files is read after that, nor mapped into memory.

        Args:
            model: the model's file, or its path.
            options: what is asked of the backend.

        Raises:
            BackendUnavailableError: the backend isn't installed or can't run here.
            ArtifactError: the backend refuses the file, or the file changed meanwhile.
        """
        file = model if isinstance(model, ModelFile) else ModelFile(model)
        backend = cls._open(file, options)
        # A process that is forked from this one must never free it: see `keep_in_children`.
        keep_in_children(backend)
        backend._own = OwnProcess("the model")
        try:
            file.check_unchanged()
        except BaseException:
            backend.close()
            raise
        return backend

    @classmethod
    @abc.abstractmethod
    def _open(cls, model: ModelFile, options: BackendOptions) -> Backend:
        """Loads a model, as `open` says."""

    def infer(
        self, feeds: Mapping[str, Array], wanted: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Runs the graph once.

        Args:
            feeds: every input by name, C-contiguous, in the dtype and shape of `inputs`.
            wanted: names of the outputs to return; all when None.

        Returns:
            The outputs by name, as arrays that belong to the caller.

        Raises:
            UsageError: a missing or unknown name, a wrong dtype or shape, or a process that was
                forked from the one that opened the model.
            BackendError: the backend failed.
        """
        return self._infer(feeds, self._checked(feeds, wanted))

    def infer_heatmaps(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], request: HeatmapRequest
    ) -> tuple[dict[str, Array], DeviceHeatmaps]:
        """Runs the graph once and makes the heatmaps where its outputs are.

        Args:
            feeds: every input by name, as `infer` takes them.
            wanted: names of the outputs to return beside the heatmaps.
            request: the heatmaps to make.

        Returns:
            The outputs by name, and the heatmaps; both belong to the caller.

        Raises:
            UsageError: a missing or unknown name, a wrong dtype or shape, another number of
                placements than of images, or heatmaps beyond the limit.
            ArtifactError: outputs that don't belong together.
            BackendError: the backend or a kernel failed, or this backend makes no heatmaps.
        """
        chosen = self._checked(feeds, [*wanted, *request.made_of])[: len(wanted)]
        if len(request.placements) != len(feeds["image"]):
            raise UsageError(
                f"there must be a placement for each of {len(feeds['image'])} images, got "
                f"{len(request.placements)}"
            )
        return self._infer_heatmaps(feeds, chosen, request)

    def _checked(self, feeds: Mapping[str, Array], wanted: Sequence[str] | None) -> list[str]:
        """Checks feeds and names of outputs; returns the names of the outputs to return."""
        if self._own is not None and os.getpid() != self._own.pid:
            self._own.refuse()
        expected = {info.name: info for info in self.inputs}
        if feeds.keys() != expected.keys():
            raise UsageError(f"the model takes the inputs {sorted(expected)}, got {sorted(feeds)}")
        for name, array in feeds.items():
            if not expected[name].fits(array):
                raise UsageError(
                    f"{name} must be {expected[name]}, got {array.dtype} {list(array.shape)}"
                )
        names = [info.name for info in self.outputs]
        chosen = names if wanted is None else list(wanted)
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise UsageError(f"the model has the outputs {names}, not {unknown}")
        return chosen

    @abc.abstractmethod
    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Runs the backend on checked feeds."""

    def _infer_heatmaps(
        self,
        feeds: Mapping[str, Array],  # noqa: ARG002 (for the backends that can)
        wanted: Sequence[str],  # noqa: ARG002
        request: HeatmapRequest,  # noqa: ARG002
    ) -> tuple[dict[str, Array], DeviceHeatmaps]:
        """Runs the backend and the heatmap kernels on checked feeds."""
        raise BackendError(f"the backend {self.name!r} makes no heatmaps on a device")

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled or copied.

        Raises:
            UsageError: always.
        """
        no_pickle("a backend")

    def close(self) -> None:  # noqa: B027 (most backends free themselves)
        """Frees what the backend holds; the backend can't be used afterwards."""
