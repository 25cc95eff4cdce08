"""A model that is served: its backend, the queues before it, and who uses it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import BackendError, BackendUnavailableError
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions, TensorInfo
from sigcam.runtime.explain import call_of, run_together
from sigcam.runtime.model import ExportedModel
from sigcam.serve.batching import Batcher, Item
from sigcam.serve.inputs import ENCODED, IMAGE
from sigcam.serve.options import ServeOptions
from sigcam.serve.outputs import Size, available
from sigcam.serve.priority import in_background
from sigcam.serve.protocol.datatypes import datatype_of
from sigcam.serve.protocol.errors import overloaded, too_late
from sigcam.serve.protocol.metadata import tensor_metadata
from sigcam.serve.records import Record
from sigcam.serve.repository import ModelPlace
from sigcam.serve.room import room_for
from sigcam.serve.runs import Runs, runs_by_backend, runs_by_callers

__all__ = ["BackendChoice", "ServedModel", "Ticket"]

BatchRan = Callable[[str, str, int, float], None]
"""Is told model, version, images and seconds of a run."""


@dataclass(frozen=True)
class BackendChoice:
    """How models are opened.

    Attributes:
        name: of the backend; "auto" for the first that works.
        options: what it is asked for.
        verify: whether files are compared with their digests.
    """

    name: str = "auto"
    options: BackendOptions = field(default_factory=BackendOptions)
    verify: bool = True

    def open(self, path: str, options: ServeOptions) -> tuple[ExportedModel, Runs]:
        """Opens a model.

        Idle threads of a backend don't spin, where it can be told so: a server's other threads,
        which decode and encode images, want the processors meanwhile.

        Args:
            path: of the model.
            options: how it is run.

        Returns:
            The model, and how its runs share the processors.

        Raises:
            SigcamError: as `sigcam.load`.
        """
        by_callers = runs_by_callers(options, self.options.threads)
        model = self._open(path, by_callers.threads)
        if model.backend.callers_compute:
            return model, by_callers
        return model, runs_by_backend(options)

    def _open(self, path: str, threads: int | None) -> ExportedModel:
        source = path if path.startswith("hf://") else Path(path)
        try:
            options = replace(self.options, **self._wishes(path, threads))
            return ExportedModel.open(source, self.name, options, verify=self.verify)
        except BackendUnavailableError:
            if self.name != "auto":
                raise
            # "auto" leaves out backends that lack an option which is given.
            return ExportedModel.open(source, self.name, self.options, verify=self.verify)

    def _wishes(self, path: str, threads: int | None) -> dict[str, Any]:
        """Returns the options that a server chooses, of those that the backend understands."""
        name = "tensorrt" if self.name == "auto" and path.endswith(".engine") else self.name
        kind = None if name == "auto" else backend_class(name)
        wishes: dict[str, Any] = {}
        if kind is None or "spinning" in kind.understands:
            wishes["spinning"] = False
        # A GPU's backend that "auto" finds keeps the threads for what it leaves to processors.
        if kind is None or kind.callers_compute:
            wishes["threads"] = threads
        return wishes


class ServedModel:
    """A version of a model with its backend, from its loading to its unloading."""

    def __init__(
        self, place: ModelPlace, choice: BackendChoice, options: ServeOptions, batch_ran: BatchRan
    ) -> None:
        """Loads the model and warms it up.

        Args:
            place: where it lies.
            choice: how it is opened.
            options: limits and batching.
            batch_ran: is told of each run.

        Raises:
            SigcamError: as `sigcam.load`.
        """
        self.name, self.version, self.place = place.name, place.version, place
        self.model, self.runs = in_background(
            lambda: choice.open(place.path, options), options.niceness
        )
        self._options = options
        self._batch_ran = batch_ran
        self._lock = threading.Condition()
        self._room = room_for(self.runs, options)
        self._tickets = 0
        self._lanes: dict[str, Batcher] = {}
        self._warm_up()

    def admit(self) -> Ticket:
        """Lets a request in, which brings one image as far as is known.

        Raises:
            RequestError: so many images wait or are in work that no more may come.
        """
        with self._lock:
            self._take(1)
            self._tickets += 1
        return Ticket(self)

    def put(self, items: Sequence[Item]) -> None:
        """Lets images of one request wait for their runs."""
        several = items[0].call.method is not None and items[0].call.method.most_passes > 1
        self._lane("several passes" if several else "one pass").put(items)

    @property
    def images(self) -> int:
        """Counts the images that wait or are in work."""
        return self._room.images

    @property
    def tickets(self) -> int:
        """Counts the requests that use it."""
        return self._tickets

    def inputs(self) -> list[dict[str, Any]]:
        """Returns the metadata of the inputs: the artifact's, and encoded images."""
        own = [
            tensor_metadata(one.name, datatype_of(one.dtype), _sizes(one))
            for one in self.model.backend.inputs
        ]
        return [*own, tensor_metadata(ENCODED, "BYTES", (-1,))]

    def outputs(self) -> list[dict[str, Any]]:
        """Returns the metadata of the outputs."""
        spec = self.model.spec
        height, width = spec.cam_shape
        known: dict[Size, int] = {"C": spec.num_classes, "h": height, "w": width}
        return [
            tensor_metadata(name, one.datatype, (-1, *(_size(size, known) for size in one.shape)))
            for name, one in available(self.model).items()
        ]

    @property
    def platform(self) -> str:
        """Names what runs it."""
        return f"sigcam_{self.model.backend.name}"

    def close(self) -> None:
        """Frees the model once the last request that uses it is over."""
        with self._lock:
            self._lock.wait_for(lambda: self._tickets == 0)
        for lane in self._lanes.values():
            lane.close()
        self.model.close()

    def _take(self, images: int) -> None:
        """Counts images in, with the lock held."""
        if not self._room.take(images):
            raise overloaded(self.name, self._room.most)

    def _release(self, images: int) -> None:
        """Counts a request and its images out, with the lock held."""
        self._room.give_back(images)
        self._tickets -= 1
        if not self._tickets:
            self._lock.notify_all()

    def _lane(self, name: str) -> Batcher:
        """Returns the queue of requests of one pass, or of several, which would hold those up."""
        with self._lock:
            if name not in self._lanes:
                one_pass = name == "one pass"
                self._lanes[name] = Batcher(
                    self._run if one_pass else self._run_several,
                    self.runs.images if one_pass else 1,
                    self._options.batch_delay / 1e6 if one_pass else 0.0,
                    f"sigcam-{self.name}-{name.replace(' ', '-')}",
                    self.runs.parallel if one_pass else 1,
                    self._options.niceness,
                )
            return self._lanes[name]

    def _run(self, batch: Sequence[Item]) -> None:
        """Runs a batch, and lets the requests that it was the last of go on."""
        begin = time.perf_counter()
        owners = list(dict.fromkeys(item.owner for item in batch))
        for owner in owners:
            owner.begin(begin)
        try:
            outputs = run_together([item.call for item in batch], [item.image for item in batch])
        except Exception as exc:
            if len(batch) == 1:
                owners[0].fail(exc)
                return
            # One image whose values overflow mustn't cost the others their answers.
            for item in batch:
                self._run([item])
            return
        seconds = time.perf_counter() - begin
        self._batch_ran(self.name, self.version, len(batch), seconds)
        for owner in owners:
            owner.in_batch(len(batch), seconds)
        for row, item in enumerate(batch):
            item.owner.ran(item.index, outputs, row)

    def _run_several(self, batch: Sequence[Item]) -> None:
        """Runs an image of a method of several passes, and stops where nobody waits any more."""
        (item,) = batch
        begin = time.perf_counter()
        item.owner.begin(begin)
        call = replace(item.call, report=item.owner.check)
        outputs = run_together([call], [item.image])
        item.owner.check_row(item.index, outputs, 0)
        made = call.explain_row(item.image, outputs, 0)
        seconds = time.perf_counter() - begin
        self._batch_ran(self.name, self.version, 1, seconds)
        item.owner.in_batch(1, seconds)
        item.owner.ran(item.index, outputs, 0, made)

    def _warm_up(self) -> None:
        """Runs the sizes that come most: a backend's first run of a shape takes longer."""
        (image,) = (one for one in self.model.backend.inputs if one.name == IMAGE)
        noise = np.random.default_rng(0).random([one or 1 for one in image.shape[1:]])
        one = (noise * 255 if image.dtype == np.uint8 else noise).astype(image.dtype)
        most = self.runs.images
        wanted, _ = call_of(self.model, most).kind  # methods of several passes read no CAMs
        with contextlib.suppress(BackendError):  # noise may be nothing that a network can take
            for count in {1, most}:
                self.model.run(np.stack([one] * count), wanted=wanted)


class Ticket:
    """A request that was let in: the model stays loaded, and its images are counted."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.arrived = time.perf_counter()
        self._images = 1
        self._open = True

    def hold(self, images: int) -> None:
        """Counts all images of the request, once they are known.

        Raises:
            RequestError: there is no room for so many, or the request is over meanwhile.
        """
        with self.served._lock:
            if not self._open:
                raise too_late()
            self.served._take(images - self._images)
            self._images = images

    def record(self) -> Record:
        """Returns a record of the request, as far as it is known."""
        return Record(self.served.name, self.served.version, arrived=self.arrived)

    def close(self) -> None:
        """Lets the model go."""
        with self.served._lock:
            if self._open:
                self._open = False
                self.served._release(self._images)

    def __enter__(self) -> Ticket:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sizes(info: TensorInfo) -> list[int]:
    return [-1 if one is None else one for one in info.shape]


def _size(size: Size, known: dict[Size, int]) -> int:
    return size if isinstance(size, int) else known[size]
