"""Loading an artifact and explaining pictures with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar, overload

import numpy as np

from sigcam.runtime.artifact import read_spec
from sigcam.runtime.backends import AUTO_ORDER, backend_class
from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.classes import resolve_classes
from sigcam.runtime.errors import BackendUnavailableError, ImageError, UsageError
from sigcam.runtime.geometry import prepare
from sigcam.runtime.image import DEFAULT_MAX_PIXELS, PictureLike, read_image
from sigcam.runtime.outputs import Picture, explanations, outputs_to_read
from sigcam.runtime.result import Explanation
from sigcam.runtime.spec import MAX_RANKS, Spec

Classes = int | str | Sequence[int | str]
P = TypeVar("P", bound=PictureLike)


def load(
    path: str | Path,
    backend: str = "auto",
    *,
    threads: int | None = None,
    spinning: bool = True,
    batch_size: int = 8,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
) -> Session:
    """Opens an exported model.

    Args:
        path: the .onnx file that `sigcam export` wrote.
        backend: the engine's name, or "auto" for the first that is installed.
        threads: threads that one inference may use; None leaves it to the engine.
        spinning: whether the engine's idle threads wait by spinning: a little faster for a
            process that runs one model all the time, wasteful in one that does more.
        batch_size: most pictures in one run of the engine.
        max_pixels: largest picture file that is decoded; None for no limit.

    Raises:
        ArtifactError: the file isn't a usable sigcam artifact.
        BackendUnavailableError: the engine isn't installed.
        UsageError: an unknown engine or a number out of range.
    """
    spec = read_spec(path)
    options = BackendOptions(threads=threads, spinning=spinning)
    opened = _open_backend(Path(path), backend, options)
    return Session(spec, opened, batch_size=batch_size, max_pixels=max_pixels)


def _open_backend(path: Path, name: str, options: BackendOptions) -> Backend:
    if name != "auto":
        return backend_class(name).open(path, options)
    missing = []
    for candidate in AUTO_ORDER:
        try:
            return backend_class(candidate).open(path, options)
        except BackendUnavailableError as exc:  # noqa: PERF203 (there are few engines)
            missing.append(exc)
    raise BackendUnavailableError(
        "no engine is installed: " + "; ".join(map(str, missing))
    ) from missing[0]


@dataclass(frozen=True)
class _Request:
    """What one call asks for: ids to feed (None where the graph chooses), maps to return."""

    ids: tuple[int, ...] | None
    count: int


class Session:
    """An exported model, ready to explain pictures.

    Nothing that changes is shared between calls, so one Session may serve several threads
    at once. It is a context manager that closes itself.
    """

    def __init__(
        self,
        spec: Spec,
        backend: Backend,
        *,
        batch_size: int = 8,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self._spec = spec
        self._backend = backend
        self._batch_size = batch_size
        self._max_pixels = max_pixels
        self._wanted = outputs_to_read(spec, backend)
        self._closed = False

    @property
    def spec(self) -> Spec:
        """What the artifact is."""
        return self._spec

    @property
    def backend_name(self) -> str:
        """Name of the engine that runs it."""
        return self._backend.name

    @overload
    def explain(
        self, images: PictureLike, classes: Classes | None = None, top_k: int = 1
    ) -> list[Explanation]: ...

    @overload
    def explain(
        self, images: list[P] | tuple[P, ...], classes: Classes | None = None, top_k: int = 1
    ) -> list[list[Explanation]]: ...

    def explain(
        self,
        images: PictureLike | list[P] | tuple[P, ...],
        classes: Classes | None = None,
        top_k: int = 1,
    ) -> list[Explanation] | list[list[Explanation]]:
        """Predictions with their evidence maps.

        Args:
            images: one picture (path, bytes of a file, or array, see `read_image`) or a
                list of pictures, which are run in batches.
            classes: a class or several, by id or name; only for artifacts exported with
                `--classes input`. None stands for the most probable ones.
            top_k: how many of the most probable classes, where `classes` is None.

        Returns:
            One Explanation for each class, in the order of `classes` or the most probable
            first; for a list of pictures, one such list for each.

        Raises:
            ImageError: a picture that can't be read; use `stream` to go on with the others.
            UnknownClassError: a class that the model doesn't have.
            UsageError: classes or a top_k that this artifact can't give.
            BackendError: the engine failed, or the model's weights aren't finite.
        """
        request = self._request(classes, top_k)
        if isinstance(images, (list, tuple)):
            return list(self._results(images, request))
        return next(self._results([images], request))

    @overload
    def stream(
        self,
        images: Iterable[PictureLike],
        classes: Classes | None = None,
        top_k: int = 1,
        on_error: Literal["raise"] = "raise",
    ) -> Iterator[list[Explanation]]: ...

    @overload
    def stream(
        self,
        images: Iterable[PictureLike],
        classes: Classes | None = None,
        top_k: int = 1,
        *,
        on_error: Literal["return"],
    ) -> Iterator[list[Explanation] | ImageError]: ...

    def stream(
        self,
        images: Iterable[PictureLike],
        classes: Classes | None = None,
        top_k: int = 1,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[list[Explanation]] | Iterator[list[Explanation] | ImageError]:
        """Explains any number of pictures, one batch in memory at a time.

        Args:
            images: pictures, taken `batch_size` at a time.
            classes: as for `explain`.
            top_k: as for `explain`.
            on_error: "raise": a bad picture ends the stream with its ImageError, after
                the results of those before it. "return": its ImageError comes in its
                place, and the others are done.

        Returns:
            An iterator over the pictures, in their order, of what `explain` returns for one.

        Raises:
            UsageError, UnknownClassError: as for `explain`, at once.
            ImageError, BackendError: as for `explain`, while iterating.
        """
        request = self._request(classes, top_k)
        if isinstance(images, (str, bytes, np.ndarray, os.PathLike)):
            raise UsageError("stream takes several pictures; pass one to explain, or put it in []")
        if on_error == "raise":
            return self._results(images, request)
        if on_error != "return":
            raise UsageError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        return self._slots(images, request, stop_at_error=False)

    def close(self) -> None:
        """Frees the engine. The Session can't be used afterwards; its results can."""
        self._closed = True
        self._backend.close()

    def __enter__(self) -> Session:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, classes: Classes | None, top_k: int) -> _Request:
        if self._closed:
            raise UsageError("the session is closed; load the model again")
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {top_k}")
        selection = self._spec.classes
        if classes is not None:
            if selection.mode != "input":
                raise UsageError(
                    f"this artifact chooses its classes itself ({selection.mode}); to name "
                    "them, export it with `sigcam export --classes input`"
                )
            if top_k != 1:
                raise UsageError(f"give classes or top_k, not both (got top_k={top_k})")
            ids = tuple(resolve_classes(classes, self._spec))
            return _Request(ids, len(ids))
        if selection.mode == "input":
            most, advice = min(self._spec.num_classes, MAX_RANKS), "name other classes by `classes`"
        else:
            most, advice = selection.k, "for more, export it with `sigcam export --classes input`"
        if top_k > most:
            raise UsageError(
                f"top_k must be at most {most} for this artifact, got {top_k}; {advice}"
            )
        ranks = tuple(range(-1, -top_k - 1, -1)) if selection.mode == "input" else None
        return _Request(ranks, top_k)

    def _results(
        self, images: Iterable[PictureLike], request: _Request
    ) -> Iterator[list[Explanation]]:
        for slot in self._slots(images, request, stop_at_error=True):
            if isinstance(slot, ImageError):
                raise slot
            yield slot

    def _slots(
        self, images: Iterable[PictureLike], request: _Request, *, stop_at_error: bool
    ) -> Iterator[list[Explanation] | ImageError]:
        pending = iter(images)
        while chunk := list(islice(pending, self._batch_size)):
            read: list[Picture | ImageError] = []
            for source in chunk:
                one = self._read(source)
                read.append(one)
                if isinstance(one, ImageError):
                    if stop_at_error:
                        break
                    one.with_traceback(None)  # it would keep the picture's bytes alive
            pictures = [one for one in read if isinstance(one, Picture)]
            found = iter(self._run(pictures, request) if pictures else ())
            slots = [one if isinstance(one, ImageError) else next(found) for one in read]
            # Nothing of this batch may live on in here once the caller has its results.
            del chunk, read, one, source, pictures, found
            while slots:
                yield slots.pop(0)

    def _read(self, source: PictureLike) -> Picture | ImageError:
        try:
            image = read_image(source, self._max_pixels)
        except ImageError as exc:
            return exc
        tensor, placement = prepare(image, self._spec.geometry)
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        return Picture(image, tensor, placement, name)

    def _run(self, pictures: list[Picture], request: _Request) -> list[list[Explanation]]:
        """Runs one batch and makes its results."""
        first = pictures[0].tensor
        batch = first[None] if len(pictures) == 1 else np.stack([p.tensor for p in pictures])
        feeds = {"image": batch}
        if request.ids is not None:
            feeds["class_ids"] = np.tile(np.array(request.ids, np.int64), (len(pictures), 1))
        outputs = self._backend.infer(feeds, self._wanted)
        return explanations(pictures, outputs, self._spec, request.count)
