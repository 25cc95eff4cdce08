"""Loading an artifact and explaining images with it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, overload

from sigcam.core.annotations import checked
from sigcam.core.arguments import (
    instance_of,
    one_of,
    whole_number,
    yes_or_no,
)
from sigcam.core.errors import ImageError, UsageError
from sigcam.core.model_file import ModelSource
from sigcam.core.processes import OwnProcess, no_pickle
from sigcam.core.progress import Report
from sigcam.core.spec import Spec
from sigcam.core.threads import Stopwatch
from sigcam.images.decode import DEFAULT_MAX_PIXELS, ImageLike, limit_opencv
from sigcam.runtime.backends.base import (
    BackendOptions,
    ConvSearch,
    HeatmapKind,
    HeatmapOptions,
    Mode,
    Precision,
)
from sigcam.runtime.classes import Classes
from sigcam.runtime.device_explanations import DeviceExplanations, explain_on_device
from sigcam.runtime.explain import (
    ExplainCall,
    NamedImage,
    Slot,
    call_of,
    method_of,
    read_image_for,
)
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.image_arguments import check_several
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.multipass.base import NO_OPTIONS

P = TypeVar("P", bound=ImageLike)


@checked
def load(
    path: ModelSource,
    backend: str = "auto",
    *,
    head: ModelSource | None = None,
    verify: bool = True,
    threads: int | None = None,
    spinning: bool = True,
    device: int = 0,
    precision: Precision = "fp32",
    mode: Mode = "latency",
    cache: str | Path | None = None,
    batch_size: int = 8,
    max_classes: int = 10,
    conv_search: ConvSearch = "heuristic",
    heatmaps: HeatmapKind = "float32",
    heatmap_limit: int = HeatmapOptions.limit,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
) -> Session:
    """Opens an exported model.

    Args:
        path: the .onnx file that `sigcam export` wrote, or the .engine file that
            `sigcam build-engine` made of it; or one that `sigcam push` published, as
            "hf://owner/name", with "@" and a revision and with "/" and the file or without.
            The Hub's client keeps it in its own cache. Or the bytes of an .onnx file, or a file
            that is open for reading bytes; one with weights in a file beside it, and engines,
            come as paths only. The files are read here, but for the head graph: what becomes of
            them afterwards doesn't change the session.
        backend: the backend's name, or "auto" for the first that can be used here: ONNX
            Runtime on an NVIDIA GPU ("ort-cuda"), then on the CPU ("ort"), then OpenVINO
            ("openvino"). Backends that lack an option that is given don't count. A backend that
            is named is never replaced by another; `backend_name` tells which one runs. For an
            .engine file it is TensorRT ("tensorrt").
        head: the head graph's file; None for the one beside `path` that has its name
            (`model.head.onnx` for `model.onnx`), if it exists; or its bytes, or an open file,
            which is all that belongs to a model of bytes. The file is held open and read when
            the graph is first needed; one that was overwritten until then is refused. It makes
            `Explanation.for_classes` and ablationcam possible.
        verify: whether all files are compared with the digests that they were written with, which
            takes a second for about 1.5 GB; docs/serving.md has figures. Without it, a damaged
            file may give wrong results.
        threads: threads that one inference may use; None leaves it to the backend, where this
            process may use the whole machine. Under a quota (containers), with fewer processors
            (taskset) or where OMP_NUM_THREADS is set, it is as many as that allows.
        spinning: whether the backend's idle threads wait by spinning: a little faster for a
            process that runs one model all the time, wasteful in one that does more.
        device: number of the GPU; backends on one only.
        precision: what the backend may compute products in, "fp32", "fp16" or "bf16";
            "openvino" and "ort-tensorrt". "openvino" refuses a type that the processor has no
            instructions for.
        mode: "latency", or "throughput" for several calls at once ("openvino").
        cache: folder for engines that are built at first use ("ort-tensorrt", which takes the
            user's cache folder when None), for kernels that TensorRT for RTX compiles ("tensorrt",
            likewise), or for compiled models ("openvino", which keeps none when None).
        batch_size: most images in one run of the backend. "openvino" compiles the model for
            single images where it is 1, which saves up to a millisecond a run; "ort-tensorrt"
            builds an engine for as many.
        max_classes: most classes for each image in one run, where "ort-tensorrt" builds an engine
            of a model that takes classes; the other backends take any number.
        conv_search: how "ort-cuda" and "ort-tensorrt" find the algorithm of a convolution:
            "heuristic"; "exhaustive", which times all of them at the first run of each batch size,
            for hundreds of milliseconds, and may find faster ones; or "default", which takes one
            that always works.
        heatmaps: what backends on a GPU make: "float32", the heatmaps of all classes with each
            batch; "uint8", the same in a quarter of the memory, as 256 levels; "lazy", CAMs alone,
            from which each heatmap is made on the CPU when it is asked for. Backends on the CPU
            are always lazy, as are methods whose CAMs the runtime makes.
        heatmap_limit: most bytes that the heatmaps of one batch may take, where they aren't lazy.
        max_pixels: largest image file that is decoded; None for no limit.

    Raises:
        ArtifactError: the file isn't a usable sigcam artifact, isn't what was written, or changed
            while it was read; or the head graph belongs to another one.
        BackendUnavailableError: the backend isn't installed, or a library, the driver or the
            device that it needs is missing.
        UsageError: an unknown backend, an option that it doesn't have, a number out of range,
            a head graph for an artifact that was exported without one, or no path where one is
            needed.
        HubError: the repository on the Hub can't be had; says why and what to do.
        BackendError: the backend would run a part of the network on another device.

    Example:
        with sigcam.load("model.onnx") as session:
            best = session.explain("cat.jpg")[0]
            best.label, best.probability, best.heatmap
    """
    options = BackendOptions(
        threads=threads,
        spinning=spinning,
        device=device,
        precision=precision,
        mode=mode,
        cache=None if cache is None else Path(cache),
        batch_size=batch_size,
        max_classes=max_classes,
        conv_search=conv_search,
        heatmaps=HeatmapOptions(heatmaps, heatmap_limit),
    )
    limit_opencv()
    model = ExportedModel.open(path, backend, options, head, verify=verify)
    try:
        return Session(model, batch_size=batch_size, max_pixels=max_pixels)
    except BaseException:
        model.close()
        raise


class Session:
    """An exported model, ready to explain images.

    Nothing that changes is shared between calls, so one Session may serve several threads
    at once. It belongs to the process that loaded it: one that was forked from that gets a
    UsageError, as does who pickles or copies it. It is a context manager that closes itself.
    """

    def __init__(
        self,
        model: ExportedModel,
        *,
        batch_size: int = 8,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
    ) -> None:
        """Takes over an opened model; `sigcam.load` is the usual way.

        Args:
            model: closed with the session.
            batch_size: most images in one run of the backend.
            max_pixels: largest image file that is decoded; None for no limit.

        Raises:
            UsageError: a number out of range.
        """
        instance_of(model, ExportedModel, "model", "open a file with sigcam.load")
        batch_size = whole_number(batch_size, "batch_size", 1)
        if max_pixels is not None:
            max_pixels = whole_number(max_pixels, "max_pixels", 1)
        self._model = model
        self._batch_size = batch_size
        self._max_pixels = max_pixels
        self._closed = False
        self._own = OwnProcess("the session")

    @property
    def spec(self) -> Spec:
        """Returns what the artifact is."""
        return self._model.spec

    @property
    def backend_name(self) -> str:
        """Returns the name of the backend that runs it."""
        return self._model.backend.name

    def passes(
        self, method: str | None = None, method_options: Mapping[str, float] = NO_OPTIONS
    ) -> int:
        """Counts the most runs of one image through network and head that a method takes.

        Args:
            method: as for `explain`; the artifact's own takes 1 if its graph gives the CAMs.
            method_options: as for `explain`.

        Raises:
            UsageError: a method that this artifact can't give, or options that it doesn't have.
        """
        found = method_of(self._model, self._batch_size, method, method_options)
        return 1 if found is None else found.most_passes

    @overload
    def explain(
        self,
        images: ImageLike,
        classes: Classes | None = None,
        top_k: int = 1,
        *,
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
    ) -> list[Explanation]: ...

    @overload
    def explain(
        self,
        images: list[P] | tuple[P, ...],
        classes: Classes | None = None,
        top_k: int = 1,
        *,
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
    ) -> list[list[Explanation]]: ...

    def explain(
        self,
        images: ImageLike | list[P] | tuple[P, ...],
        classes: Classes | None = None,
        top_k: int = 1,
        *,
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
    ) -> list[Explanation] | list[list[Explanation]]:
        """Predictions with their evidence maps.

        Args:
            images: one image (path, bytes of a file, a file open for reading bytes, PIL image or
                array, see `read_image`) or a list of images, which are run in batches. An array
                has the channels of the model's input: [H, W, n].
            classes: a class or several, by id or name, or by rank: -1 is the most probable one,
                -2 the next; only for artifacts exported with `--classes input`. None stands for
                the most probable ones.
            top_k: how many of the most probable classes, where `classes` is None.
            min_probability: asks for every class of at least this probability, 0 to 1, in place
                of `classes` and `top_k`; for a multi-label network 0.5 is usual. Where the
                artifact made fewer maps than there are such classes, the further ones come from
                its head graph, or from a second run of an artifact exported with `--classes
                input`.
            method: None for the artifact's own; "scorecam", "ablationcam", "eigencam" or "rise"
                (see `sigcam.runtime.multipass`), which take `passes(method)` runs for an image.
            method_options: numbers that the method is called with; those of rise are masks
                (4000), cells (7), keep (0.5) and seed (0); the others have none.
            progress: True shows a bar with the time left on standard error for each image
                of several passes; or a callable, which is called with the passes done and
                the passes in all for the image at hand.

        Returns:
            One Explanation for each class, in the order of `classes` or the most probable
            first; for a list of images, one such list for each. None where no class reaches
            `min_probability`.

        Raises:
            ImageError: an image that can't be read; use `stream` to go on with the others. It is
                an ImageArgumentError, which is a UsageError too, where what was passed is no image.
            UnknownClassError: a class that the model doesn't have.
            UsageError: classes, a top_k, a method or options that this artifact can't give, or
                fewer maps than there are classes of `min_probability`.
            BackendError: the backend failed, or the model's weights aren't finite.
        """
        call = self._call(classes, top_k, min_probability, method, method_options, progress)
        if isinstance(images, (list, tuple)):
            return list(self._results(images, call))
        return next(self._results([images], call))

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        classes: Classes | None = None,
        top_k: int = 1,
        on_error: Literal["raise"] = "raise",
        *,
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
        readers: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Generator[list[Explanation], None, None]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        classes: Classes | None = None,
        top_k: int = 1,
        *,
        on_error: Literal["return"],
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
        readers: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Generator[Slot, None, None]: ...

    def stream(
        self,
        images: Iterable[ImageLike],
        classes: Classes | None = None,
        top_k: int = 1,
        on_error: Literal["raise", "return"] = "raise",
        *,
        min_probability: float | None = None,
        method: str | None = None,
        method_options: Mapping[str, float] = NO_OPTIONS,
        progress: bool | Report = False,
        readers: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Generator[list[Explanation], None, None] | Generator[Slot, None, None]:
        """Explains any number of images, with a few batches in memory at most.

        Args:
            images: images, taken `batch_size` at a time; one at a time for a method of
                several passes.
            classes: as for `explain`.
            top_k: as for `explain`.
            min_probability: as for `explain`.
            on_error: "raise": a bad image ends the stream with its ImageError, after
                the results of those before it. "return": its ImageError comes in its
                place, and the others are done.
            method: as for `explain`.
            method_options: as for `explain`.
            progress: as for `explain`.
            readers: threads that read images while the backend works: two batches are in
                memory instead of one, and `images` is iterated in such a thread. They end with
                the iterator: at its end, or when it is closed. 0: all is done in the caller's
                thread, when a result is asked for.
            stopwatch: adds up the seconds in which the backend ran.

        Returns:
            An iterator over the images, in their order, of what `explain` returns for one.

        Raises:
            UsageError, UnknownClassError: as for `explain`, at once.
            ImageError, BackendError: as for `explain`, while iterating.
        """
        readers = whole_number(readers, "readers", 0)
        on_error = one_of(on_error, "on_error", ("raise", "return"))
        if stopwatch is not None:
            instance_of(stopwatch, Stopwatch, "stopwatch", "see sigcam.core.threads")
        call = self._call(classes, top_k, min_probability, method, method_options, progress)
        call = replace(call, readers=readers, stopwatch=stopwatch)
        check_several(images)
        if on_error == "raise":
            return self._results(images, call)
        return self._here(replace(call, stop_at_error=False).explained(images, self._read))

    def explain_device(
        self,
        images: Any,
        classes: Classes | None = None,
        *,
        layout: Literal["NHWC", "NCHW"] | None = None,
        stream: Any = None,
    ) -> DeviceExplanations:
        """Explains images that lie on the GPU, and leaves the results there.

        A kernel makes the network's input as the CPU does, to one level of 255. All work is
        enqueued behind what is on `stream`; the host waits for at most an earlier call's.

        Args:
            images: uint8, C-contiguous, with `__dlpack__` or `__cuda_array_interface__`: a batch
                [B, H, W, n] or [B, n, H, W], or a list of images of any sizes [H, W, n] or
                [n, H, W], n being the model's channels (RGB). They stay the caller's, are only
                read, and must stay as they are until `stream` has come to the results.
            classes: as for `explain`; None for the most probable, or all that the artifact chooses.
            layout: "NHWC" or "NCHW"; None tells by the channels, and refuses what may be either.
            stream: a stream of torch, CuPy or PyCUDA, or its handle (whose stream must outlive the
                results), of the GPU's primary context; the legacy default stream when None.

        Returns:
            Heatmaps, CAMs and scores; they belong to the caller.

        Raises:
            UsageError: images, a stream or classes that don't fit, heatmaps beyond `heatmap_limit`,
                or a backend, method or model that can't do this. The session works on afterwards.
            UnknownClassError, BackendError: as for `explain`.

        Example:
            found = session.explain_device(batch, stream=torch.cuda.current_stream())
            heatmaps = torch.from_dlpack(found.heatmaps)
        """
        call = self._call(classes, 1, None, None, NO_OPTIONS, progress=False)
        return explain_on_device(self._model, images, call.request, layout, stream)

    def close(self) -> None:
        """Frees the backend. The Session can't be used afterwards; its results can.

        In a process that was forked from the one that loaded it, nothing is freed.
        """
        self._closed = True
        self._model.close()

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled or copied.

        Raises:
            UsageError: always.
        """
        no_pickle("a Session")

    def __enter__(self) -> Session:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        classes: Classes | None,
        top_k: int,
        min_probability: float | None,
        method: str | None,
        method_options: Mapping[str, float],
        progress: bool | Report,
    ) -> ExplainCall:
        if os.getpid() != self._own.pid:
            self._own.refuse()
        if self._closed:
            raise UsageError("the session is closed; load the model again")
        if not callable(progress):
            progress = yes_or_no(progress, "progress")
        return call_of(
            self._model,
            self._batch_size,
            classes,
            top_k,
            min_probability,
            method,
            method_options,
            progress,
        )

    def _results(
        self, images: Iterable[ImageLike], call: ExplainCall
    ) -> Generator[list[Explanation], None, None]:
        found = self._here(call.explained(images, self._read))
        try:
            for slot in found:
                if isinstance(slot, ImageError):
                    raise slot
                yield slot
                del slot
        finally:
            found.close()

    def _here(self, found: Generator[Slot, None, None]) -> Generator[Slot, None, None]:
        """Yields what `found` gives, and refuses to go on in a process that was forked meanwhile.

        Its threads aren't there, so it would be waited for for ever.
        """
        try:
            while True:
                if os.getpid() != self._own.pid:
                    self._own.refuse()
                try:
                    slot = next(found)
                except StopIteration:
                    return
                yield slot
                del slot
        finally:
            if os.getpid() == self._own.pid:
                found.close()

    def _read(self, source: ImageLike) -> NamedImage | ImageError:
        return read_image_for(source, self.spec.preprocessing, self._max_pixels)
