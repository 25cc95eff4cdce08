"""Runs an artifact under evaluation: predictions, CAMs, and probabilities of changed images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sigcam.core.errors import BackendError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.core.spec import MAX_RANKS, Preprocessing
from sigcam.core.threads import Stopwatch
from sigcam.core.types import Array
from sigcam.images.preprocess import prepare
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel, ModelOutputs, Wanted, probabilities_of

T = TypeVar("T")

PREDICTED = 0.5
"""The least probability of a class that a multi-label artifact predicts."""

_CLASSES = 10
"""Classes in one run: as many as `sigcam build-engine` builds for, unless it is told otherwise."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an artifact predicts for one image, and the CAM that is scored.

    Attributes:
        class_id: the most probable class; of a multi-label artifact the sample's own class, where
            it has one.
        probability: that class's probability, above 0 and up to 1; see `Explanation.probability`.
        cam_class: the class that `cam` is of: the true one where the artifact takes class ids
            and the sample has a class, the predicted one otherwise.
        cam: float32 [h, w], finite.
        predicted_cam: float32 [h, w], finite, of `class_id`.
        least_cam: float32 [h, w], finite, of the class that is least probable (of more than
            `MAX_RANKS` classes the one of that rank); None where the artifact makes no CAM of it.
        is_predicted: whether the artifact predicts `class_id`; a multi-label one does so from a
            probability of `PREDICTED` on.
    """

    class_id: int
    probability: float
    cam_class: int
    cam: Array
    predicted_cam: Array
    least_cam: Array | None = None
    is_predicted: bool = True


@dataclass(frozen=True)
class ArtifactInfo:
    """An artifact that was evaluated, as a report describes it.

    Attributes:
        name: the file's name, with as many folders as tell it from the others.
        path: the file.
        digest: SHA-256 of the file and its weights.
        backend: the name of the backend that ran it.
        spec: its spec, as JSON has it.
        takes_class_ids: whether it makes CAMs of any class, so that the true class's was scored.
    """

    name: str
    path: Path
    digest: str
    backend: str
    spec: dict[str, Any]
    takes_class_ids: bool


class EvaluatedModel:
    """An artifact that is opened for an evaluation. A context manager that closes the backend.

    Attributes:
        name: what reports call the artifact.
        path: the artifact's file.
        spec: the artifact's spec.
        digest: SHA-256 of the file and its weights.
        backend_name: the name of the backend that runs it.
        stopwatch: adds up the seconds in which the backend ran.
    """

    def __init__(
        self, name: str, path: Path, backend: str, options: BackendOptions, stopwatch: Stopwatch
    ) -> None:
        """Opens an artifact.

        Args:
            name: what reports call it; see `names_of`.
            path: the .onnx or .engine file.
            backend: the backend's name, or "auto".
            options: what the backend is asked for.
            stopwatch: what the backend's seconds are added to; several artifacts may share one.

        Raises:
            ArtifactError, BackendUnavailableError, UsageError: as `sigcam.load`.
        """
        self.name, self.path, self.stopwatch = name, path, stopwatch
        file = ModelFile(path)
        self.digest = file.contents_sha256()
        self._model = ExportedModel.open(file, backend, options, with_head=False)
        self.spec, self.backend_name = self._model.spec, self._model.backend.name
        if self.spec.profile == "features":
            self.close()
            raise UsageError(
                f"{path} has the method {self.spec.method}, whose maps the runtime makes in "
                f"several passes, and an evaluation scores maps of the graph; export one of its "
                f"methods, such as --method gradcam or --method reciprocam"
            )

    @property
    def takes_class_ids(self) -> bool:
        """Returns whether the artifact makes CAMs of any class, so also of the true one."""
        return self._model.takes_class_ids

    @property
    def raw_preprocessing(self) -> Preprocessing:
        """Returns how images are read for the artifact: its own preprocessing, to raw pixels.

        Changed images have raw pixels too, [H, W, n] of the type that the artifact reads, so what
        the network's layout adds is done in `predict`.
        """
        return self.spec.preprocessing.raw

    def predict(self, images: Sequence[Array], labels: Sequence[int | None]) -> list[Prediction]:
        """Runs the artifact on a batch of images.

        Args:
            images: raw pixels [H, W, n] each, read by `raw_preprocessing`.
            labels: each image's true class, or None.

        Returns:
            One prediction for each image.

        Raises:
            BackendError: the backend failed, or logits or CAMs aren't finite.
        """
        least = -min(self.spec.num_classes, MAX_RANKS)
        asked = np.array([[-1, -1 if label is None else label, least] for label in labels])
        outputs = self._run(images, asked, "cams")
        rows = zip(
            probabilities_of(outputs.logits, self.spec.task),
            outputs.class_ids,
            self._with_path(outputs.finite_cams),
            labels,
            strict=True,
        )
        has_least, several = self.takes_class_ids and least < -1, self.is_multi_label
        return [_prediction(*row, has_least, several) for row in rows]

    @property
    def is_multi_label(self) -> bool:
        """Returns whether an image may have several classes."""
        return self.spec.task == "multi-label"

    def predicts(self, images: Sequence[Array], class_ids: Sequence[int]) -> Array:
        """Finds out whether each image's class is the predicted one, or one of them.

        Args:
            images: raw pixels [H, W, n] each, of the input's size.
            class_ids: a class for each image.

        Returns:
            bool [B].

        Raises:
            BackendError: the backend failed, or logits aren't finite.
        """
        if self.is_multi_label:
            return np.asarray(self.probabilities(images, class_ids) >= PREDICTED)
        return np.asarray(self._logits(images).argmax(axis=1) == np.array(class_ids))

    def cams(self, images: Sequence[Array], class_ids: Array) -> Array:
        """Makes the CAMs of named classes.

        Args:
            images: raw pixels [H, W, n] each, of the input's size.
            class_ids: int64 [B, K], 0 <= id < C.

        Returns:
            float32 [B, K, h, w], finite.

        Raises:
            UsageError: the artifact chooses its classes itself.
            BackendError: the backend failed, or CAMs aren't finite.
        """
        if not self.takes_class_ids:
            raise UsageError(f"{self.path} makes no CAMs of named classes")
        parts = []
        for first in range(0, class_ids.shape[1], _CLASSES):
            outputs = self._run(images, class_ids[:, first : first + _CLASSES], "cams")
            parts.append(self._with_path(outputs.finite_cams))
        return np.concatenate(parts, axis=1)

    def info(self) -> ArtifactInfo:
        """Returns the description of the artifact that reports show."""
        return ArtifactInfo(
            name=self.name,
            path=self.path,
            digest=self.digest,
            backend=self.backend_name,
            spec=json.loads(self.spec.to_json()),
            takes_class_ids=self.takes_class_ids,
        )

    def probabilities(self, images: Sequence[Array], class_ids: Sequence[int]) -> Array:
        """Computes the probability of one class of each image.

        Args:
            images: raw pixels [H, W, n] each, of the input's size.
            class_ids: each image's class, 0 <= id < C.

        Returns:
            float64 [B], 0 to 1.

        Raises:
            BackendError: the backend failed, or logits aren't finite.
        """
        found = probabilities_of(self._logits(images), self.spec.task)
        return found[np.arange(len(found)), np.array(class_ids, np.int64)]

    def close(self) -> None:
        """Frees the backend."""
        self._model.close()

    def __enter__(self) -> EvaluatedModel:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _logits(self, images: Sequence[Array]) -> Array:
        asked = np.array([[-1]] * len(images), np.int64)
        return self._run(images, asked, "logits").logits

    def _run(self, images: Sequence[Array], asked: Array, wanted: Wanted) -> ModelOutputs:
        batch, class_ids = self._batch(images), asked if self.takes_class_ids else None
        with self.stopwatch:
            return self._with_path(lambda: self._model.run(batch, class_ids, wanted=wanted))

    def _with_path(self, function: Callable[[], T]) -> T:
        """Calls a function and puts the artifact's path before what its errors say."""
        try:
            return function()
        except BackendError as exc:
            raise BackendError(f"{self.path}: {exc}") from exc

    def _batch(self, images: Sequence[Array]) -> Array:
        """Makes the network's input of images that have its size already."""
        if self.spec.preprocessing.layout != "float32_nchw":
            return np.stack(images)
        # Only the numbers change, not the size.
        plain = dataclasses.replace(self.spec.preprocessing, rule="stretch", resize=None)
        return np.stack([prepare(image, plain)[0] for image in images])


def preprocessings_of(models: Sequence[EvaluatedModel]) -> list[Preprocessing]:
    """Returns every way in which artifacts want their images read, each once."""
    return list(dict.fromkeys(model.raw_preprocessing for model in models))


def names_of(paths: Sequence[Path]) -> list[str]:
    """Returns what reports call files: their names, with as many folders as tell them apart.

    Args:
        paths: the files.

    Raises:
        UsageError: a file that is named twice.

    >>> names_of([Path("a/model.onnx"), Path("b/model.onnx")])
    ['a/model.onnx', 'b/model.onnx']
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


def _prediction(
    probabilities: Array,
    class_ids: Array,
    cams: Array,
    label: int | None,
    has_least: bool,
    several: bool,
) -> Prediction:
    """Chooses one image's CAMs among those of `class_ids` [K], of which the last may be least."""
    predicted = int(probabilities.argmax())
    if several and label is not None:  # one record for each class of the image
        predicted = label
    same = np.flatnonzero(class_ids == predicted)
    # Of equal logits the graph may choose another class than argmax does.
    first = int(same[0]) if len(same) else 0
    row = first
    if label is not None and label in class_ids:
        row = int(np.flatnonzero(class_ids == label)[0])
    return Prediction(
        class_id=predicted,
        # Records are float32, in which the sigmoid of a very low logit would be 0.
        probability=max(float(probabilities[predicted]), float(np.finfo(np.float32).tiny)),
        cam_class=int(class_ids[row]),
        cam=cams[row].copy(),
        predicted_cam=cams[first].copy(),
        least_cam=cams[-1].copy() if has_least else None,
        is_predicted=not several or bool(probabilities[predicted] >= PREDICTED),
    )
