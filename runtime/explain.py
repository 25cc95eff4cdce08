"""From images to Explanations: in batches, in order, with a few batches in memory at most."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sigcam.core.arguments import instance_of, real_number
from sigcam.core.errors import ImageError, UsageError
from sigcam.core.progress import Report, reporter
from sigcam.core.spec import Preprocessing, Spec
from sigcam.core.threads import Stopwatch, ahead, in_order
from sigcam.core.types import Array
from sigcam.images.decode import ImageLike
from sigcam.images.frames import Frame
from sigcam.images.preprocess import Prepared, read_input
from sigcam.runtime.backends.base import DeviceHeatmaps
from sigcam.runtime.classes import Classes, ClassRequest, request_for, resolve_classes
from sigcam.runtime.explanation import ClassResult, ExplainedImage, Explanation
from sigcam.runtime.head_graph import HeadGraph
from sigcam.runtime.model import (
    ExportedModel,
    ModelOutputs,
    Wanted,
    check_evidence,
    evidence_of,
    probabilities_of,
)
from sigcam.runtime.multipass import multipass_method
from sigcam.runtime.multipass.base import NO_OPTIONS, MultiPass, Subject

Slot = list[Explanation] | ImageError
"""What comes of an image: its Explanations, or why it can't be read."""

_NO_FEATURES = np.empty((0, 0, 0), np.float32)


@dataclass(frozen=True)
class NamedImage(Prepared):
    """An image that was read for the network, with the path that it came from.

    Attributes:
        source: the path that was given, "#" and the number of a Frame; None for bytes and arrays.
    """

    source: str | None


def read_image_for(
    source: ImageLike, preprocessing: Preprocessing, max_pixels: int | None
) -> NamedImage | ImageError:
    """Reads and prepares one image; returns the error of one that can't be read.

    Example:
        >>> image = np.zeros((480, 640, 3), np.uint8)
        >>> read_image_for(image, Preprocessing(), None).placement.crop_box
        (80, 0, 560, 480)
        >>> error = read_image_for("missing.jpg", Preprocessing(), None)
        >>> type(error).__name__
        'ImageError'
    """
    try:
        read = read_input(source, preprocessing, max_pixels)
    except ImageError as exc:
        return exc
    if isinstance(source, Frame):
        name = source.name
    else:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    return NamedImage(read.tensor, read.placement, read.original, name)


@dataclass(frozen=True)
class ExplainCall:
    """What one call of a Session asks for.

    Attributes:
        model: runs the network.
        request: the classes.
        batch_size: most images in one run.
        method: makes the CAMs; None for the model's own method.
        report: is told the passes of the image at hand; None tells nobody.
        readers: threads that read images ahead; with 0 nothing runs ahead.
        stopwatch: runs while the backend does; None measures nothing.
        stop_at_error: whether the first bad image is the last one.
    """

    model: ExportedModel
    request: ClassRequest
    batch_size: int
    method: MultiPass | None = None
    report: Report | None = None
    readers: int = 0
    stopwatch: Stopwatch | None = None
    stop_at_error: bool = True

    def explained(
        self, images: Iterable[ImageLike], read: Callable[[ImageLike], NamedImage | ImageError]
    ) -> Generator[Slot, None, None]:
        """Explains images in their order.

        Args:
            images: the images.
            read: reads and prepares one; called in threads where there are `readers`.
        """
        if self.readers == 0:
            return self._slots(map(read, images))
        # The backend stays in the caller's thread. In another one, glibc gave it memory of its own
        # beside what loading the model had freed: 70 MB more for a ResNet-50.
        prepared = in_order(read, images, self.readers, "sigcam-read")
        return self._slots(ahead(prepared, self.batch_size, "sigcam-feed"))

    def _slots(self, read: Iterator[NamedImage | ImageError]) -> Generator[Slot, None, None]:
        try:
            stopped = False
            while not stopped:
                chunk = self._chunk(read)
                bad = self.stop_at_error and any(isinstance(one, ImageError) for one in chunk)
                stopped = bad or len(chunk) < self.batch_size
                done = self._done(chunk)
                # Nothing of this batch may live on in here once the caller has its results.
                del chunk
                while done:
                    yield done.pop(0)
        finally:
            if isinstance(read, Generator):  # its threads end with it
                read.close()

    def _chunk(self, read: Iterator[NamedImage | ImageError]) -> list[NamedImage | ImageError]:
        """Takes the next images; fewer than a batch if they end, or at a bad one."""
        chunk: list[NamedImage | ImageError] = []
        for one in islice(read, self.batch_size):
            chunk.append(one)
            if isinstance(one, ImageError):
                if self.stop_at_error:
                    break
                one.with_traceback(None)  # it would keep the image's bytes alive
        return chunk

    def _done(self, chunk: list[NamedImage | ImageError]) -> list[Slot]:
        images = [one for one in chunk if isinstance(one, NamedImage)]
        found = iter(self.explain_batch(images) if images else ())
        return [one if isinstance(one, ImageError) else next(found) for one in chunk]

    def explain_batch(self, images: list[NamedImage]) -> list[list[Explanation]]:
        """Runs one batch and makes its results.

        Raises:
            BackendError: the backend failed, or what it gave isn't finite.
            ArtifactError: the graph's outputs don't belong together.
        """
        outputs = self._run(images, self.request.ids)
        return [self.explain_row(image, outputs, row) for row, image in enumerate(images)]

    @property
    def kind(self) -> tuple[Wanted, int | None]:
        """Says what calls have in common whose images may be run in one batch."""
        ids = self.request.ids
        return _wanted(self.method), None if ids is None else len(ids)

    def explain_row(self, image: NamedImage, outputs: ModelOutputs, row: int) -> list[Explanation]:
        """Makes the results of one image, which is a row of what a run gave.

        Raises:
            UsageError: there are more classes of the least probability than CAMs.
            BackendError: a method of several passes, or a second run, failed.
            ArtifactError: the graph's outputs don't belong together.
        """
        explain = self._explain if self.request.min_probability is None else self._probable
        return explain(image, outputs, row)

    def _run(self, images: list[NamedImage], ids: tuple[int, ...] | None) -> ModelOutputs:
        asked = None if ids is None else np.tile(np.array(ids, np.int64), (len(images), 1))
        with self._timed():
            return _run(self.model, images, asked, _wanted(self.method))

    def _probable(self, image: NamedImage, outputs: ModelOutputs, row: int) -> list[Explanation]:
        """Makes the results of every class that is probable enough, the most probable first.

        Raises:
            UsageError: there are more such classes than the artifact makes maps of.
        """
        least = self.request.min_probability
        probabilities = probabilities_of(outputs.logits[row], self.model.spec.task)
        ranked = np.argsort(-probabilities, kind="stable").tolist()
        chosen = [one for one in ranked if probabilities[one] >= (least or 0.0)]
        given = outputs.class_ids.shape[1]
        if len(chosen) <= given:
            return self._explain(image, outputs, row, len(chosen)) if chosen else []
        cheap = self.method is None or self.method.from_features
        if self.model.head_graph is not None and cheap:
            found = self._explain(image, outputs, row, given)
            made = {one.class_id for one in found}
            return found + found[0].for_classes([one for one in chosen if one not in made])
        if self.model.takes_class_ids:
            return self._explain(image, self._run([image], tuple(chosen)), 0, len(chosen))
        name = f"{image.source}: " if image.source else ""
        raise UsageError(
            f"{name}{len(chosen)} classes have a probability of at least {least:g}, and this "
            f"artifact makes maps of {given} at most; ask for a higher probability, or export it "
            "with `sigcam export --head-graph` or `--classes input`"
        )

    def _explain(
        self, image: NamedImage, outputs: ModelOutputs, row: int, count: int | None = None
    ) -> list[Explanation]:
        """Makes the results of one image, the row of a run's outputs; as many as were asked for."""
        spec, method = self.model.spec, self.method
        probabilities = probabilities_of(outputs.logits[row], spec.task)
        ids = outputs.class_ids[row, : self.request.count if count is None else count]
        cams, passes = self._cams(image, outputs, row, ids)
        evidence = None if outputs.evidence_logits is None else outputs.evidence_logits[row]
        results = class_results(probabilities, ids, evidence, cams, spec)
        further = None
        if self.model.head_graph is not None and outputs.head_input is not None:
            kept = outputs.head_input[row].copy()  # a view would keep the whole batch alive
            further = HeadGraphClasses(
                spec, self.model.head_graph, method, probabilities, kept, results[0].cam
            )
        shared = ExplainedImage(image.placement, image.original, further)
        made = [None] * len(results) if outputs.heatmaps is None else _made(outputs.heatmaps, row)
        return [
            Explanation(
                *result,
                method=spec.method if method is None else method.name,
                source=image.source,
                passes=passes,
                _image=shared,
                _made=one,
            )
            for result, one in zip(results, made, strict=False)
        ]

    def _cams(
        self, image: NamedImage, outputs: ModelOutputs, row: int, ids: Array
    ) -> tuple[Array, int]:
        """Returns one image's CAMs [K, h, w], and the passes that they took."""
        if self.method is None:
            assert outputs.cams is not None  # noqa: S101 (they were asked for)
            if self.report is not None:
                self.report(1, 1)
            return outputs.cams[row][: len(ids)], 1
        features = _NO_FEATURES if outputs.features is None else outputs.features[row]
        subject = Subject(features, ids, image.tensor)
        with self._timed():
            return self.method.cams(subject, self.report or reporter(False, self.method.name))

    def _timed(self) -> Stopwatch | nullcontext[None]:
        return nullcontext() if self.stopwatch is None else self.stopwatch


def call_of(
    model: ExportedModel,
    batch_size: int,
    classes: Classes | None = None,
    top_k: int = 1,
    min_probability: float | None = None,
    method: str | None = None,
    method_options: Mapping[str, float] = NO_OPTIONS,
    progress: bool | Report = False,
) -> ExplainCall:
    """Checks what is asked of a model, before any image is read.

    Args:
        model: runs the network.
        batch_size: most images in one run.
        classes: as for `Session.explain`; so are the others.
        top_k: how many of the most probable classes.
        min_probability: asks for every class of at least this probability.
        method: None for the artifact's own.
        method_options: numbers that the method is called with.
        progress: who is told the passes.

    Raises:
        UnknownClassError: a class that the model doesn't have.
        UsageError: classes, a top_k, a method or options that this artifact can't give.

    Example:
        with ExportedModel.open("model.onnx") as model:
            call = call_of(model, 8, classes=["cat", "dog"])
            call.explain_batch([read_image_for("cat.jpg", model.spec.preprocessing, None)])
    """
    request = request_for(classes, top_k, model.spec, min_probability)
    found = method_of(model, batch_size, method, method_options)
    # One image at a time where each takes long: the first result needn't wait.
    size = batch_size if found is None or found.most_passes == 1 else 1
    report = reporter(progress, method or model.spec.method) if progress else None
    return ExplainCall(model, request, size, found, report)


def method_of(
    model: ExportedModel, batch_size: int, name: str | None, options: Mapping[str, float]
) -> MultiPass | None:
    """Returns the method of that name; None for one whose CAMs the graph gives.

    Args:
        model: runs the network and its head graph.
        batch_size: most images in one run.
        name: of the method; None for the artifact's own.
        options: numbers that it is called with, by name.

    Raises:
        UsageError: a method that this artifact can't give, or options that it doesn't have.

    Example:
        method = method_of(model, 8, "rise", {"masks": 100})
        method.most_passes  # 101
    """
    if name is not None:
        instance_of(name, str, "method", "leave it out for the artifact's own")
    instance_of(options, Mapping, "method_options", "pass a dict of numbers by name")
    given: Mapping[Any, Any] = options
    for key, value in given.items():
        instance_of(key, str, "a name in method_options")
        if not isinstance(value, float):  # whether it is in range is the method's affair
            real_number(value, f"method_options[{key!r}]", -math.inf, math.inf)
    return multipass_method(name, model, batch_size, options)


def run_together(calls: Sequence[ExplainCall], images: Sequence[NamedImage]) -> ModelOutputs:
    """Runs images of several calls in one batch; `ExplainCall.explain_row` takes its rows.

    Args:
        calls: the call of each image; all of one model and of one `kind`.
        images: as many images.

    Raises:
        BackendError: the backend failed, or what it gave isn't finite.
        ArtifactError: the graph's outputs don't belong together.

    Example:
        outputs = run_together([ask_cat, ask_dog], [first, second])
        ask_dog.explain_row(second, outputs, row=1)
    """
    wanted, count = calls[0].kind
    ids = None if count is None else np.array([one.request.ids for one in calls], np.int64)
    return _run(calls[0].model, images, ids, wanted)


def _run(
    model: ExportedModel, images: Sequence[NamedImage], ids: Array | None, wanted: Wanted
) -> ModelOutputs:
    first = images[0].tensor
    batch = first[None] if len(images) == 1 else np.stack([one.tensor for one in images])
    placements = [one.placement for one in images] if wanted == "cams" else None
    return model.run(batch, ids, wanted=wanted, placements=placements)


def _wanted(method: MultiPass | None) -> Wanted:
    if method is None:
        return "cams"
    return "features" if method.needs_features else "prediction"


def _made(heatmaps: DeviceHeatmaps, row: int) -> list[tuple[Array, bool]]:
    """Returns the heatmap of each class of an image, read-only, and whether it is valid."""
    assert heatmaps.heatmaps is not None  # noqa: S101 (the model leaves out those without)
    arrays = heatmaps.heatmaps[row]
    arrays.setflags(write=False)
    return [(one, bool(valid)) for one, valid in zip(arrays, heatmaps.valid[row], strict=True)]


def class_results(
    probabilities: Array, class_ids: Array, evidence_logits: Array | None, cams: Array, spec: Spec
) -> list[ClassResult]:
    """Puts together the results of each class of one image.

    Args:
        probabilities: float64 [C].
        class_ids: int64 [K].
        evidence_logits: float32 [K] or more; None without a sigmoid branch.
        cams: float32 [K, h, w]; each is copied, as a view would keep the batch's alive.
        spec: names the classes.

    Example:
        >>> from sigcam.core.spec import ClassSelection, Source
        >>> spec = Spec("cam", "sigmoid", True, ("layer4",), "fused", ClassSelection("input"),
        ...             Preprocessing(), 3, ((8, 7, 7),), Source("net", "0"), ("cat", "dog", "owl"))
        >>> cams, probabilities = np.zeros((1, 7, 7), np.float32), np.array([0.25, 0.5, 0.25])
        >>> (one,) = class_results(probabilities, np.array([1]), np.zeros(1), cams, spec)
        >>> one.label, one.probability, one.evidence
        ('dog', 0.5, 0.5)
    """
    ids = class_ids[: len(cams)].tolist()
    evidence = (
        [None] * len(ids) if evidence_logits is None else evidence_of(evidence_logits).tolist()
    )
    results = []
    for rank, cam in enumerate(cams):
        own = cam.copy()
        own.setflags(write=False)
        chosen = ids[rank]
        probability = float(probabilities[chosen])
        results.append(ClassResult(chosen, spec.label(chosen), probability, evidence[rank], own))
    return results


class HeadGraphClasses:
    """Makes results of further classes of one image, from what the network gave for it.

    Shared by all Explanations of the image that came from one call.
    """

    def __init__(
        self,
        spec: Spec,
        head_graph: HeadGraph,
        method: MultiPass | None,
        probabilities: Array,
        values: Array,
        cam: Array,
    ) -> None:
        """Keeps what is needed of an image; arrays must be the caller's copies.

        Args:
            spec: the model's spec.
            head_graph: the model's head graph.
            method: made the image's CAMs; None for the model's own method.
            probabilities: float64 [C].
            values: float32 [...], the image's row of the output `head_graph.head_input`.
            cam: float32 [h, w], one of the image's CAMs.
        """
        self._spec = spec
        self._head_graph = head_graph
        self._method = method
        self._probabilities = probabilities
        self._values = values
        self._cam = cam

    def __reduce__(self) -> tuple[type[_Left], tuple[()]]:
        """Leaves itself out of copies: one sent to another process has no backend there."""
        return _Left, ()

    def results(self, classes: Classes) -> tuple[list[ClassResult], int]:
        """Returns a result for each class in the order given, and the passes that they took.

        Raises:
            UsageError, UnknownClassError, BackendError: as `Explanation.for_classes`.
        """
        ranked = np.argsort(-self._probabilities, kind="stable")
        found = resolve_classes(classes, self._spec, len(ranked))
        ids = np.array([ranked[-one - 1] if one < 0 else one for one in found], np.int64)
        method = self._method
        if method is None:
            outputs = self._run(ids, "cams", "evidence_logits")
            cams, passes = outputs["cams"][0], 1
        else:
            if not method.from_features:
                raise UsageError(
                    f"{method.name} runs the whole network many times, so further classes "
                    f"cost as much as a new call: explain(..., classes=..., "
                    f"method={method.name!r}) makes all heatmaps in one"
                )
            outputs = self._run(ids, "evidence_logits")
            passes = 1 if outputs else 0
            if method.class_agnostic:
                cams = np.broadcast_to(self._cam, (len(ids), *self._cam.shape))
            else:
                subject = Subject(self._values, ids)
                cams, more = method.cams(subject, reporter(False, method.name))
                passes += more - 1  # all but the network's
        evidence = outputs["evidence_logits"][0] if "evidence_logits" in outputs else None
        if evidence is not None:
            check_evidence(evidence)
        return class_results(self._probabilities, ids, evidence, cams, self._spec), passes

    def _run(self, ids: Array, *wanted: str) -> dict[str, Array]:
        return self._head_graph.run(self._values[None], ids[None], wanted)


class _Left:
    """What stands for the head graph in copies of an Explanation."""

    def results(self, classes: Classes) -> tuple[list[ClassResult], int]:
        """Refuses.

        Raises:
            UsageError: always.
        """
        del classes
        raise UsageError(
            "this Explanation is a copy or was pickled, and such a one goes without the head "
            "graph; ask the Explanation that `Session.explain` returned, or explain the image "
            "again with a session of this process (load the model after the fork)"
        )
