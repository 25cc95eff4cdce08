"""One call's work: what it asks for, and how a batch of images is done.

Heatmaps of further classes of an image, after the fact, from the head graph.

From images that are read to their results: in batches, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from sigcam.core.errors import ImageError, UsageError
from sigcam.core.progress import Report, reporter
from sigcam.core.spec import Spec
from sigcam.core.threads import Stopwatch, ahead, close, in_order
from sigcam.core.types import Array
from sigcam.images.decode import ImageLike
from sigcam.runtime.backends.base import DeviceHeatmaps
from sigcam.runtime.classes import Classes, Request, resolve_classes
from sigcam.runtime.explanation import ClassResult, Explanation
from sigcam.runtime.head_graph import Head
from sigcam.runtime.model import (
    PreparedImage,
    class_results,
    made_heatmaps,
    makes_heatmaps,
    own_cams,
    softmax,
)
from sigcam.runtime.multipass.base import MultiPass, Subject, Tools


@dataclass(frozen=True)
class Work:
    """What one call asks for.

    Attributes:
        request: the classes.
        method: None for the artifact's own.
        wanted: the outputs to read.
        batch_size: most images in the first run.
        report: how to tell the progress.
        readers: threads that read images ahead; 0: nothing runs ahead.
        stopwatch: runs while the backend does.
    """

    request: Request
    method: MultiPass | None
    wanted: list[str]
    batch_size: int
    report: Report
    readers: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


def explain_batch(images: list[PreparedImage], work: Work, tools: Tools) -> list[list[Explanation]]:
    """Runs one batch and makes its results.

    Raises:
        BackendError: the backend failed, or what it gave isn't finite.
        ArtifactError: the graph's outputs don't belong together.
    """
    first = images[0].tensor
    batch = first[None] if len(images) == 1 else np.stack([p.tensor for p in images])
    feeds = {"image": batch}
    if work.request.ids is not None:
        feeds["class_ids"] = np.tile(np.array(work.request.ids, np.int64), (len(images), 1))
    made: DeviceHeatmaps | None = None
    if work.method is None and makes_heatmaps(tools.spec, tools.network):
        with work.stopwatch:
            outputs, made = made_heatmaps(tools.spec, tools.network, feeds, work.wanted, images)
    else:
        with work.stopwatch:
            outputs = tools.network.infer(feeds, work.wanted)
        if work.method is None:
            outputs["cams"] = own_cams(outputs, tools.spec)
    results = []
    for row, image in enumerate(images):
        values = {name: array[row] for name, array in outputs.items()}
        heatmaps = None if made is None else _of_classes(made, row)
        results.append(_explain(image, values, heatmaps, work, tools))
    return results


def _of_classes(made: DeviceHeatmaps, row: int) -> list[tuple[Array, bool]]:
    """The heatmap of each class of an image, read-only, and whether it is valid."""
    heatmaps = made.heatmaps[row]
    heatmaps.setflags(write=False)
    return [(one, bool(valid)) for one, valid in zip(heatmaps, made.valid[row], strict=True)]


def _explain(
    image: PreparedImage,
    row: Mapping[str, Array],
    heatmaps: list[tuple[Array, bool]] | None,
    work: Work,
    tools: Tools,
) -> list[Explanation]:
    """The results of one image, from its row of the first run's outputs and finished heatmaps."""
    spec, method, head = tools.spec, work.method, tools.head
    probabilities = softmax(row["logits"])  # first: it refuses what isn't worth more passes
    ids = row["class_ids_out"][: work.request.count]
    if method is None:
        cams, passes = row["cams"][: len(ids)], 1
        work.report(1, 1)
    else:
        subject = Subject(row["features"], ids, image.tensor)
        with work.stopwatch:
            cams, passes = method.cams(subject, work.report)
    results = class_results(probabilities, ids, row.get("evidence_logits"), cams, spec)
    further = None
    if head is not None:
        shared = results[0].cam
        further = Further(spec, head, method, probabilities, row[head.head_input], shared)
    return [
        Explanation(
            *result,
            method=spec.method if method is None else method.name,
            placement=image.placement,
            original=image.original,
            source=image.source,
            passes=passes,
            further=further,
            made=None if heatmaps is None else heatmaps[rank],
        )
        for rank, result in enumerate(results)
    ]


class Further:
    """What the network said of one image, and what makes heatmaps of it.

    Shared by all Explanations of the image that came from one call. Holds copies: no part
    of a batch is kept alive.
    """

    def __init__(
        self,
        spec: Spec,
        head: Head,
        method: MultiPass | None,
        probabilities: Array,
        values: Array,
        cam: Array,
    ) -> None:
        """Keeps what is needed of an image.

        Args:
            spec: of the artifact.
            head: its head graph.
            method: that made the image's heatmaps; None for the artifact's own.
            probabilities: float64 [C].
            values: float32 [...], the image's row of the output `head.head_input`.
            cam: float32 [h, w], one of the image's heatmaps.
        """
        self._spec = spec
        self._head = head
        self._method = method
        self._probabilities = probabilities
        self._values = values.copy()
        self._cam = cam

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copy, or one sent to another process, has no backend: there `further` is None."""
        return _nothing, ()

    def results(self, classes: Classes) -> tuple[list[ClassResult], int]:
        """One result for each class in the order given, and the passes that they took.

        Raises:
            UsageError, UnknownClassError, BackendError: as `Explanation.for_classes`.
        """
        ids = np.array(resolve_classes(classes, self._spec), np.int64)
        method = self._method
        if method is None:
            outputs = self._run(ids, "cams", "evidence_logits")
            cams, passes = outputs["cams"][0], 1
        else:
            if not method.from_features:
                raise UsageError(
                    f"{method.name} runs the whole network for every channel, so further classes "
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
        return class_results(self._probabilities, ids, evidence, cams, self._spec), passes

    def _run(self, ids: Array, *wanted: str) -> dict[str, Array]:
        return self._head.infer(self._values[None], ids[None], wanted)


def _nothing() -> None:
    return None


Read = Callable[[ImageLike], "PreparedImage | ImageError"]
Slot = list[Explanation] | ImageError


def slots(
    images: Iterable[ImageLike], read: Read, work: Work, tools: Tools, *, stop_at_error: bool
) -> Generator[Slot, None, None]:
    """What comes of each image, in order: its results, or why it can't be read.

    Args:
        images: the images.
        read: reads and prepares one.
        work: with `readers` above 0, images are read in threads
            meanwhile.
        tools: of the session.
        stop_at_error: whether the first bad image is the last slot.
    """
    if work.readers == 0:
        return _explained(map(read, images), work, tools, stop_at_error=stop_at_error)
    # The backend stays in the caller's thread. In another one, glibc gave it memory of its own
    # beside what loading the model had freed: 70 MB more for a ResNet-50.
    prepared = in_order(read, images, work.readers, "sigcam-read")
    ready = ahead(prepared, work.batch_size, "sigcam-feed")
    return _explained(ready, work, tools, stop_at_error=stop_at_error)


def _explained(
    read: Iterator[PreparedImage | ImageError], work: Work, tools: Tools, *, stop_at_error: bool
) -> Generator[Slot, None, None]:
    try:
        stopped = False
        while not stopped:
            chunk = _chunk(read, work.batch_size, stop_at_error=stop_at_error)
            bad = stop_at_error and any(isinstance(one, ImageError) for one in chunk)
            stopped = bad or len(chunk) < work.batch_size
            done = _done(chunk, work, tools)
            # Nothing of this batch may live on in here once the caller has its results.
            del chunk
            while done:
                yield done.pop(0)
    finally:
        close(read)


def _chunk(
    read: Iterator[PreparedImage | ImageError], size: int, *, stop_at_error: bool
) -> list[PreparedImage | ImageError]:
    """The next `size` images; fewer if they end, or at a bad one."""
    chunk: list[PreparedImage | ImageError] = []
    for one in islice(read, size):
        chunk.append(one)
        if isinstance(one, ImageError):
            if stop_at_error:
                break
            one.with_traceback(None)  # it would keep the image's bytes alive
    return chunk


def _done(chunk: list[PreparedImage | ImageError], work: Work, tools: Tools) -> list[Slot]:
    images = [one for one in chunk if isinstance(one, PreparedImage)]
    found = iter(explain_batch(images, work, tools) if images else ())
    return [one if isinstance(one, ImageError) else next(found) for one in chunk]
