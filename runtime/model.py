"""An opened exported model: the one place that knows which outputs a graph has and what they mean.

`sigcam.load`, evaluation and quantisation all run models through `ExportedModel`. It reads the
spec, opens the backend and, when one is needed, the head graph; it combines the profile
"split" to CAMs; it has heatmaps made on the device where the backend can; and it refuses values
that aren't finite.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError, UsageError
from sigcam.core.model_file import ModelFile, ModelSource
from sigcam.core.processes import OwnProcess, no_pickle
from sigcam.core.spec import Profile, Spec, Task
from sigcam.core.types import Array
from sigcam.hub.pull import local
from sigcam.images.preprocess import Placement
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import (
    Backend,
    BackendOptions,
    DeviceHeatmaps,
    HeatmapOptions,
    HeatmapRequest,
)
from sigcam.runtime.head_graph import HeadGraph, find_head_graph

Wanted = Literal["cams", "features", "prediction", "logits"]
"""What a run is for: CAMs of the model's own method; features, for a method that makes its own
CAMs of them; the prediction alone, with classes and evidence; or nothing but the logits."""

_OWN_OUTPUTS: dict[Profile, list[str]] = {
    "fused": ["cams"],
    "split": ["features", "cam_weights"],
    "features": ["features"],
}
"""What the CAMs of an artifact come from, by its profile."""

_PREDICTED = -1
"""The rank of the most probable class, in `class_ids`."""


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """What one run of an exported model gave. Every array belongs to the caller.

    Attributes:
        logits: float32 [B, C] of the classifier, before softmax or sigmoid; finite.
        class_ids: int64 [B, K], the classes that CAMs and evidence are of, 0 <= id < C.
        cams: float32 [B, K, h, w], >= 0 unless the spec says signed, not enlarged and not checked
            for NaN; None where they weren't wanted. "Beyond Softmax", Eq. 4 with NWC.
        evidence_logits: float32 [B, K] of the sigmoid branch; None without that branch, and
            where only the logits were wanted.
        features: float32 [B, N, h, w]; None where they weren't wanted.
        head_input: float32 [B, ...], what the head graph takes; None without a head graph.
        heatmaps: those that the backend made on its device, where placements were given and
            it can; None otherwise.
    """

    logits: Array
    class_ids: Array
    cams: Array | None = None
    evidence_logits: Array | None = None
    features: Array | None = None
    head_input: Array | None = None
    heatmaps: DeviceHeatmaps | None = None

    def finite_cams(self) -> Array:
        """Returns the CAMs, float32 [B, K, h, w], once they are known to be numbers.

        Raises:
            BackendError: a CAM isn't finite.
        """
        if self.cams is None or not np.isfinite(self.cams).all():
            raise BackendError(
                "the CAMs are not finite, so the model's weights are not finite or overflow; check "
                "the classifier's weights and export it again"
            )
        return self.cams


class ExportedModel:
    """An exported model with the backend that runs it. A context manager that closes itself.

    Nothing that changes is shared between calls, so several threads may run one model.

    Attributes:
        spec: what the model is.
        backend: runs its graph.
        head_graph: makes CAMs of further classes from what a run gave; None without one.

    Example:
        with ExportedModel.open("model.onnx") as model:
            outputs = model.run(batch)  # uint8 [B, H, W, 3] for the layout uint8_nhwc
            outputs.logits, outputs.class_ids, outputs.cams
    """

    def __init__(
        self,
        spec: Spec,
        backend: Backend,
        head_graph: HeadGraph | None = None,
        heatmaps: HeatmapOptions | None = None,
    ) -> None:
        """Takes over a backend that has the model loaded; `open` is the usual way.

        Args:
            spec: what the model is.
            backend: has it loaded.
            head_graph: the model's, if there is one.
            heatmaps: how a backend that can makes heatmaps; `HeatmapOptions()` when None.

        Raises:
            ArtifactError: the graph doesn't have the inputs and outputs that its spec means.
        """
        self.spec, self.backend, self.head_graph = spec, backend, head_graph
        self._heatmaps = heatmaps or HeatmapOptions()
        self._given = {info.name for info in backend.outputs}
        self._own = _OWN_OUTPUTS[spec.profile]
        self._made_of = self._heatmaps.made_of(self._own) if backend.makes_heatmaps else ()
        self._check_graph()
        self._names: dict[Wanted, list[str]] = {
            "logits": ["logits"],
            "prediction": self._outputs(),
            "features": self._outputs("features"),
            "cams": self._outputs(*self._own),
        }
        # Where the device makes the heatmaps, what they are made of stays there.
        self._beside_heatmaps = self._outputs()
        self._process = OwnProcess("the model")

    @classmethod
    def open(
        cls,
        path: ModelSource | ModelFile,
        backend: str = "auto",
        options: BackendOptions | None = None,
        head: ModelSource | None = None,
        *,
        with_head: bool = True,
        verify: bool = True,
    ) -> ExportedModel:
        """Opens a file that `sigcam export` or `sigcam build-engine` wrote.

        Args:
            path: the .onnx or .engine file, or an address on the Hub; or the bytes of an .onnx
                file, or a file that is open for reading bytes.
            backend: the backend's name, or "auto"; see `sigcam.load`.
            options: what the backend is asked for; its defaults when None.
            head: the head graph's file; None for the one beside `path` that has its name.
            with_head: whether a head graph is looked for at all; who explains no further
                classes needs none.
            verify: whether all files are compared with their digests first.

        Raises:
            ArtifactError, BackendUnavailableError, BackendError, UsageError, HubError: as
                `sigcam.load`.
        """
        if not isinstance(path, ModelFile):
            path = ModelFile(local(path) if isinstance(path, (str, Path)) else path)
        file = path
        options = options or BackendOptions()
        spec = file.spec
        if spec.kind != "artifact":
            raise ArtifactError(
                f"{file.name} is a head graph; give the artifact that it belongs to"
                + (", and this file as `head`" if with_head else "")
            )
        found = find_head_graph(file, head, verify=verify) if with_head else None
        if verify and not file.is_engine:  # an engine is compared with its sidecar anyhow
            file.verify()
        opened = open_backend(file, backend, options)
        # A TensorRT engine's head graph is an ONNX file, which another backend has to run.
        name = "auto" if file.is_engine else opened.name
        try:
            if found is None or spec.head_input is None:
                return cls(spec, opened, None, options.heatmaps)
            graph = HeadGraph(
                spec.head_input, found, lambda later: open_backend(later, name, options)
            )
            return cls(spec, opened, graph, options.heatmaps)
        except BaseException:
            opened.close()
            raise

    @property
    def takes_class_ids(self) -> bool:
        """Says whether the caller names the classes (`--classes input` at export)."""
        return self.spec.classes.mode == "input"

    @property
    def output_names(self) -> frozenset[str]:
        """Returns the names of the graph's outputs."""
        return frozenset(self._given)

    def run(
        self,
        batch: Array,
        class_ids: Array | None = None,
        *,
        wanted: Wanted = "cams",
        placements: Sequence[Placement] | None = None,
    ) -> ModelOutputs:
        """Runs the network once.

        Args:
            batch: the input in the spec's layout: raw pixels [B, H, W, n], uint8 (RGB) or
                float32, or float32 [B, n, H, W], normalised.
            class_ids: int64 [B, K], ids from 0 or ranks (-1 the most probable class); None for
                the most probable class, or for those that the model chooses itself.
            wanted: what is read of the graph.
            placements: where each input lies in its image: the backend then makes the heatmaps
                too, if it can.

        Raises:
            UsageError: a batch of another shape or type, or classes for a model that chooses
                them itself.
            ArtifactError: features and CAM weights that don't belong together.
            BackendError: the backend failed, or logits or evidence aren't finite.
        """
        if wanted == "cams" and self.spec.profile == "features":
            raise UsageError(
                f"this artifact has the method {self.spec.method}, whose CAMs are made of several "
                f"runs or at least outside the graph; use `sigcam.load(...).explain` or `sigcam "
                f"explain`, or export a method of the graph"
            )
        feeds = self._feeds(batch, class_ids)
        heatmaps: DeviceHeatmaps | None = None
        if wanted == "cams" and placements is not None and self._made_of:
            request = HeatmapRequest(
                tuple(placements), self.spec.nwc, self.spec.signed, self._heatmaps, self._made_of
            )
            found, made = self.backend.infer_heatmaps(feeds, self._beside_heatmaps, request)
            cams: Array | None = made.cams
            heatmaps = None if made.heatmaps is None else made
        else:
            found = self.backend.infer(feeds, self._names[wanted])
            cams = self._cams(found) if wanted == "cams" else None
        _check_finite(found)
        head = self.head_graph
        return ModelOutputs(
            logits=found["logits"],
            class_ids=found.get("class_ids_out", np.empty((len(batch), 0), np.int64)),
            cams=cams,
            evidence_logits=found.get("evidence_logits"),
            features=found.get("features") if wanted == "features" else None,
            head_input=None if head is None else found.get(head.head_input),
            heatmaps=heatmaps,
        )

    @property
    def scores_output(self) -> str | None:
        """Names the output with the scores that CAM weights come from; None where there is none.

        The scores are logits of `spec.branch` for classes that stay the same in every run.
        """
        if self.spec.branch in ("softmax", "centred"):
            return "logits"
        if self.takes_class_ids and "evidence_logits" in self._given:
            return "evidence_logits"
        return "sigmoid_logits" if "sigmoid_logits" in self._given else None

    @property
    def device_outputs(self) -> tuple[str, ...]:
        """Names the outputs from which everything for an image is made on the device."""
        evidence = ["evidence_logits"] if "evidence_logits" in self._given else []
        return ("logits", "class_ids_out", *evidence, *self._own)

    @property
    def heatmap_options(self) -> HeatmapOptions:
        """Says how a device makes heatmaps."""
        return self._heatmaps

    def scores(self, batch: Array, class_ids: Array) -> Array:
        """Runs the network for the logits, before sigmoid or softmax, of the same classes.

        Args:
            batch: as for `run`.
            class_ids: int64 [K], 0 <= id < C.

        Returns:
            float32 [B, K], of the branch that the CAM weights come from; not checked for NaN.

        Raises:
            UsageError: the graph has no such output (`scores_output` is None).
            BackendError: the backend failed.
        """
        name = self.scores_output
        if name is None:
            raise UsageError(
                "the graph gives no scores of one class in every run, as it chooses its classes "
                f"itself ({self.spec.classes.mode}); export it with `sigcam export --classes "
                "input` or `--sigmoid-logits`"
            )
        asked = np.tile(class_ids, (len(batch), 1)) if self.takes_class_ids else None
        values = self.backend.infer(self._feeds(batch, asked), [name])[name]
        if self.spec.branch == "centred":
            values = values - values.mean(axis=1, keepdims=True)
        return values if name == "evidence_logits" else values[:, class_ids]

    def close(self) -> None:
        """Frees the backend and the head graph's; what `run` returned stays usable.

        In a process that was forked from the one that loaded it, nothing is freed: that would
        wait for threads that aren't there.
        """
        if os.getpid() != self._process.pid:
            return
        self.backend.close()
        if self.head_graph is not None:
            self.head_graph.close()

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled or copied.

        Raises:
            UsageError: always.
        """
        no_pickle("an ExportedModel")

    def __enter__(self) -> ExportedModel:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outputs(self, *names: str) -> list[str]:
        """Lists the outputs to read: what every run gives, `names`, and the head graph's input."""
        head = [] if self.head_graph is None else [self.head_graph.head_input]
        evidence = ["evidence_logits"] if "evidence_logits" in self._given else []
        return list(dict.fromkeys(["logits", "class_ids_out", *names, *head, *evidence]))

    def _check_graph(self) -> None:
        inputs = {info.name for info in self.backend.inputs}
        needed = {"image", "class_ids"} if self.takes_class_ids else {"image"}
        wanted = [name for name in self._outputs(*self._own) if name != "evidence_logits"]
        if inputs != needed or not self._given.issuperset(wanted):
            raise ArtifactError(
                f"the graph doesn't fit its spec: it should take {sorted(needed)} and give "
                f"{wanted}, but takes {sorted(inputs)} and gives {sorted(self._given)}; export the "
                "model again"
            )
        self._check_image_input()

    def _check_image_input(self) -> None:
        """Compares the input with the spec: images are prepared by the spec, before any run."""
        (image,) = (info for info in self.backend.inputs if info.name == "image")
        preprocessing = self.spec.preprocessing
        size = (preprocessing.height, preprocessing.width)
        channels = preprocessing.channels
        chw = preprocessing.layout == "float32_nchw"
        shape = (channels, *size) if chw else (*size, channels)
        if len(image.shape) != 4 or any(
            got not in (None, want) for got, want in zip(image.shape[1:], shape, strict=True)
        ):
            raise ArtifactError(
                f"the graph doesn't fit its spec: its images are {image}, and the spec says "
                f"{preprocessing.layout} [?, {', '.join(map(str, shape))}]; export the model again"
            )

    def _feeds(self, batch: Array, class_ids: Array | None) -> dict[str, Array]:
        if not self.takes_class_ids:
            if class_ids is not None:
                raise UsageError(
                    f"this model chooses its classes itself ({self.spec.classes.mode}); leave out "
                    "class_ids, or export it with `sigcam export --classes input`"
                )
            return {"image": batch}
        if class_ids is None:
            class_ids = np.full((len(batch), 1), _PREDICTED, np.int64)
        return {"image": batch, "class_ids": class_ids}

    def _cams(self, outputs: dict[str, Array]) -> Array:
        if self.spec.profile == "fused":
            return outputs["cams"]
        try:
            return clamp_combine(
                outputs["features"],
                outputs["cam_weights"],
                clamp=self.spec.nwc,
                signed=self.spec.signed,
            )
        except ValueError as exc:
            raise ArtifactError(
                f"the graph's outputs don't belong together: {exc}; export the model again"
            ) from exc


def probabilities_of(logits: Array, task: Task) -> Array:
    """Returns each class's probability in float64, safe from overflow.

    Args:
        logits: finite, [..., C].
        task: "single-label" for the softmax; "multi-label" and "binary" for the sigmoid of each
            class's own logit (a binary network's two logits are l and -l, so these add up to 1).

    >>> probabilities_of(np.array([1000.0, 1000.0]), "single-label")
    array([0.5, 0.5])
    >>> probabilities_of(np.array([2.97, -2.97]), "binary").round(3)
    array([0.951, 0.049])
    """
    if task != "single-label":
        return evidence_of(logits)
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def evidence_of(logits: Array) -> Array:
    """Returns the sigmoid of evidence logits in float64, safe from overflow.

    >>> evidence_of(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    >>> float(evidence_of(np.array(-100.0))) > 0
    True
    """
    values = logits.astype(np.float64)
    # exp of what isn't positive never overflows, and keeps what is small: exp(-100) isn't 0.
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1, small) / (1 + small))


def _check_finite(outputs: dict[str, Array]) -> None:
    if not np.isfinite(outputs["logits"]).all():
        raise BackendError(
            "the logits are not finite, so the model's weights are not finite or overflow; "
            "check the classifier and export it again"
        )
    if "evidence_logits" in outputs:
        check_evidence(outputs["evidence_logits"])


def check_evidence(logits: Array) -> None:
    """Refuses evidence logits that aren't numbers.

    Raises:
        BackendError: one of them is NaN.

    Example:
        >>> check_evidence(np.array([2.5, -1.0]))
        >>> check_evidence(np.array([np.nan]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.BackendError: the evidence is not a number, so the sigmoid branch's ...
    """
    if np.isnan(logits).any():
        raise BackendError(
            "the evidence is not a number, so the sigmoid branch's weights are not finite; "
            "train the branch again"
        )
