"""An artifact under evaluation: what it says of a batch of images, and of changed ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from sigcam.core.artifact import read_spec
from sigcam.core.errors import BackendError, UsageError
from sigcam.core.files import model_digest
from sigcam.core.spec import Preprocessing
from sigcam.core.threads import Stopwatch
from sigcam.core.types import Array
from sigcam.images.preprocess import prepare
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import own_cams, softmax


@dataclass(frozen=True, eq=False)
class Answer:
    """What an artifact says of one image.

    Attributes:
        predicted: the most probable class.
        probability: its softmax probability, 0 to 1.
        cam_class: class of `cam`: the true one where the artifact can be asked for it and the
            sample has one, the predicted one otherwise.
        cam: float32 [h, w], of `cam_class`.
        predicted_cam: float32 [h, w], of the predicted class.
    """

    predicted: int
    probability: float
    cam_class: int
    cam: Array
    predicted_cam: Array


class Model:
    """An opened artifact. A context manager that closes the backend.

    Attributes:
        name: what reports call it: the file's name, told apart where several are equal.
        path: of the file.
        spec: that it carries.
        digest: of the file and its weights.
        backend_name: the backend that runs it.
        stopwatch: adds up the seconds in which the backend ran.
    """

    def __init__(
        self, name: str, path: Path, backend: str, options: BackendOptions, stopwatch: Stopwatch
    ) -> None:
        """Opens it.

        Raises:
            ArtifactError, BackendUnavailableError, UsageError: as `sigcam.load`.
        """
        self.name, self.path, self.spec, self.stopwatch = name, path, read_spec(path), stopwatch
        if self.spec.kind != "artifact":
            raise UsageError(f"{path} is a head graph; evaluate the artifact that it belongs to")
        self.digest = model_digest(path)
        self._backend = open_backend(path, backend, options)
        self.backend_name = self._backend.name
        own = ["cams"] if self.spec.profile == "fused" else ["features", "cam_weights"]
        self._wanted = ["logits", "class_ids_out", *own]

    @property
    def asks(self) -> bool:
        """Whether the map of any class can be asked for, also of the true one."""
        return self.spec.classes.mode == "input"

    @property
    def reading(self) -> Preprocessing:
        """How images are read for it: its own preprocessing, as uint8 [H, W, 3]."""
        return dataclasses.replace(self.spec.preprocessing, layout="uint8_nhwc")

    def answers(self, images: Sequence[Array], labels: Sequence[int | None]) -> list[Answer]:
        """Runs a batch.

        Args:
            images: uint8 [H, W, 3] each, read by `reading`.
            labels: the true class of each, or None.

        Raises:
            BackendError: the backend failed, or what it gave isn't finite.
        """
        asked = np.array([[-1, -1 if label is None else label] for label in labels], np.int64)
        outputs = self._run(images, asked, self._wanted)
        cams = own_cams(outputs, self.spec)
        if not np.isfinite(cams).all():
            raise BackendError(f"{self.path} gives a map that isn't finite; export it again")
        return [
            self._answer(softmax(logits), ids, cam, label)
            for logits, ids, cam, label in zip(
                outputs["logits"], outputs["class_ids_out"], cams, labels, strict=True
            )
        ]

    def _answer(self, probabilities: Array, ids: Array, cams: Array, label: int | None) -> Answer:
        predicted = int(probabilities.argmax())
        own = np.flatnonzero(ids == predicted)
        first = int(own[0]) if len(own) else 0  # of equal logits the graph may choose another
        row = first
        if label is not None and label in ids:
            row = int(np.flatnonzero(ids == label)[0])
        return Answer(
            predicted, float(probabilities[predicted]), int(ids[row]), cams[row].copy(),
            cams[first].copy(),
        )  # fmt: skip

    def probabilities(self, images: Sequence[Array], class_ids: Sequence[int]) -> Array:
        """Softmax probabilities of one class of each image, float64 [B].

        Args:
            images: uint8 [H, W, 3] each, of the input's size.
            class_ids: of each.
        """
        asked = np.array([[-1]] * len(images), np.int64)
        logits = self._run(images, asked, ["logits"])["logits"]
        found = [softmax(row)[one] for row, one in zip(logits, class_ids, strict=True)]
        return np.array(found, np.float64)

    def _run(self, images: Sequence[Array], asked: Array, wanted: list[str]) -> dict[str, Array]:
        feeds = {"image": self._batch(images)}
        if self.asks:
            feeds["class_ids"] = asked
        with self.stopwatch:
            return self._backend.infer(feeds, wanted)

    def _batch(self, images: Sequence[Array]) -> Array:
        if self.spec.preprocessing.layout == "uint8_nhwc":
            return np.stack(images)
        # They have the input's size already, so only the numbers change.
        plain = dataclasses.replace(self.spec.preprocessing, rule="stretch", resize=None)
        return np.stack([prepare(image, plain)[0] for image in images])

    def close(self) -> None:
        """Frees the backend."""
        self._backend.close()

    def __enter__(self) -> Model:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def names_of(paths: Sequence[Path]) -> list[str]:
    """What reports call the files: their names, with as many folders as tell them apart.

    Raises:
        UsageError: a file that is named twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UsageError("the same artifact is named twice; name each once")
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
        depth += 1
