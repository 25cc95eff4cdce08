"""The spec: what an artifact is, as frozen dataclasses and as JSON.

An artifact carries its spec in `metadata_props["sigcam"]`. The JSON is an object with
`schema_version`; a reader refuses any version but its own and ignores keys that it
doesn't know within that version.

`Spec` comes first with what it is made of, then the two reports that it carries: how closely
the graph follows PyTorch (`ParityReport`), and what a precision other than float32 costs
(`FidelityReport`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from sigcam.core.annotations import check_fields
from sigcam.core.errors import SchemaError, UsageError
from sigcam.core.schema import check_schema_version
from sigcam.core.typed import check_types

SCHEMA_VERSION = 4
METADATA_KEY = "sigcam"
_DIGEST = re.compile("[0-9a-f]{64}")
MAX_RANKS = 1000
"""Most ranks that an artifact with the class selection "input" resolves."""

Branch = Literal["sigmoid", "softmax", "centred"]
Purpose = Literal["localise", "discriminate"]
Profile = Literal["fused", "split", "features"]
Kind = Literal["artifact", "head"]
Task = Literal["single-label", "multi-label", "binary"]
"""What a classifier's logits mean; see `Spec.task`."""
ResizeRule = Literal["crop", "stretch", "letterbox"]
InputLayout = Literal["uint8_nhwc", "float32_nhwc", "float32_nchw"]
ChannelOrder = Literal["rgb", "bgr"]
SelectionMode = Literal["top1", "topk", "input"]
QuantizedPrecision = Literal["int8", "int8-head", "fp16", "bf16"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Attributes:
        height, width: size of the network's input in pixels.
        rule: "crop": the shorter side is resized to `resize`, then the centre
            [height, width] is cut out; "stretch": resized to [height, width] whatever
            the aspect; "letterbox": fitted inside [height, width], the rest filled
            with the mean colour.
        resize: length in pixels of the shorter side before the cut; "crop" only. At least the
            input's shorter side, which it is when None. An image that would then be smaller than
            an input that isn't square is resized until it covers that.
        mean, std: one number per channel, in units of pixel value / scale; as many channels as
            numbers. Three are R, G, B, four may be R, G, B, A; one is grey.
        scale: the pixel value that counts as 1. 255 stands for images of 8 bits; with any other
            (65535 for 16 bits, 1 for values as they are) pixels are read as they are, as float32.
        layout: "uint8_nhwc": raw bytes, normalised in the graph; "float32_nhwc": the same for a
            scale other than 255, raw values; "float32_nchw": (pixel / scale - mean) / std, done
            by the caller. None takes the raw one of the two that belongs to the scale.
        channel_order: the order in which the network itself takes three channels. Images, mean
            and std are R, G, B whatever it is: the graph turns them into that order.

    Raises:
        UsageError: a value out of range, or ones that contradict each other.

    Example:
        >>> Preprocessing(224, 224, "crop").resize
        224
        >>> six_bands = Preprocessing(64, 64, mean=(0.1,) * 6, std=(0.05,) * 6, scale=65535)
        >>> six_bands.channels, six_bands.layout
        (6, 'float32_nhwc')
    """

    height: int = 224
    width: int = 224
    rule: ResizeRule = "crop"
    resize: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    layout: InputLayout | None = None
    scale: float = 255.0
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        check_fields(self)
        _positive("height", self.height)
        _positive("width", self.width)
        if self.rule == "crop":
            if self.resize is None:
                object.__setattr__(self, "resize", min(self.height, self.width))
            _positive("resize", self.resize or 0)
            if (self.resize or 0) < min(self.height, self.width):
                raise UsageError(
                    f"resize must be at least the input size {min(self.height, self.width)} "
                    f"for the rule 'crop', got {self.resize}"
                )
        elif self.resize is not None:
            raise UsageError(f"resize belongs to the rule 'crop', not to {self.rule!r}")
        self._check_channels()
        self._check_scale()

    def _check_channels(self) -> None:
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if not values or not all(math.isfinite(v) for v in values):
                raise UsageError(f"{name} must be finite numbers, one per channel, got {values}")
            object.__setattr__(self, name, values)
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"mean and std must have as many numbers as the network's input has channels, got "
                f"{len(self.mean)} and {len(self.std)}; give both"
            )
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0, got {self.std}")

    def _check_scale(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(f"scale must be a finite number above 0, got {self.scale}")
        if self.layout is None:
            object.__setattr__(self, "layout", "uint8_nhwc" if self.takes_bytes else "float32_nhwc")
        if self.layout == "uint8_nhwc" and not self.takes_bytes:
            raise UsageError(
                f"the layout uint8_nhwc is for 8-bit images, whose scale is 255, got the scale "
                f"{self.scale:g}; take float32_nhwc (raw values) or float32_nchw (normalised)"
            )
        if self.layout == "float32_nhwc" and self.takes_bytes:
            raise UsageError(
                "the layout float32_nhwc is for pixel values that aren't bytes, whose scale isn't "
                "255; take uint8_nhwc, or give the scale (1 for values as they are)"
            )

    @property
    def channels(self) -> int:
        """Returns the number of channels of the network's input."""
        return len(self.mean)

    @property
    def takes_bytes(self) -> bool:
        """Returns whether images are read as bytes; if not, as float32 with their own values."""
        return self.scale == 255

    @property
    def raw(self) -> Preprocessing:
        """Returns the same with raw pixels as its layout, [H, W, channels]."""
        return replace(self, layout=None)


@dataclass(frozen=True)
class ClassSelection:
    """Which classes an artifact makes CAMs for.

    Attributes:
        mode: "top1": the predicted class; "topk": the k most probable classes, most
            probable first; "input": the classes that the caller names in `class_ids`,
            where -1 stands for the most probable class, -2 for the next, and so on to
            -min(C, MAX_RANKS). (The graph ranks a fixed number of classes, because backends
            other than ONNX Runtime take no TopK with a size known only at run time.)
        k: number of classes per image for "topk"; 1 otherwise (for "input" the caller
            decides at run time).

    Example:
        >>> ClassSelection("topk", 5)
        ClassSelection(mode='topk', k=5)
    """

    mode: SelectionMode = "top1"
    k: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        _positive("k", self.k)
        if self.mode != "topk" and self.k != 1:
            raise UsageError(f"k belongs to the class selection 'topk', not to {self.mode!r}")


@dataclass(frozen=True)
class Source:
    """Where an artifact comes from.

    Attributes:
        architecture: the name that the model was loaded by.
        weights_sha256: hash of the classifier's tensors (names, types, shapes, bytes).
        branch_sha256: the same hash of the sigmoid branch's tensors; None without a branch.
        trained_on: what the sigmoid branch was trained on, in words; None without a branch.
        versions: the packages that wrote the file, by name, with their versions.
        file_sha256: hash of the ONNX file that the classifier was read from; None for others.
        front: how much of that file's graph stands in the artifact, or why none does, in words.
    """

    architecture: str
    weights_sha256: str
    branch_sha256: str | None = None
    trained_on: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    file_sha256: str | None = None
    front: str | None = None


@dataclass(frozen=True)
class Spec:
    """What an artifact is and how to use it.

    Attributes:
        method: name of the CAM method, e.g. "cam".
        branch: what the CAM weights come from: the trained "sigmoid" branch, the classifier's own
            "softmax" branch, or "centred": the softmax branch with the mean over the classes
            taken off its logits.
        nwc: whether negative weights are clamped to 0 before the weighted sum.
        signed: whether CAMs keep the sign of that sum; if not, what is negative is 0.
        purpose: the question that the map was chosen for: "localise", where is the object, or
            "discriminate", what speaks for this class and not for another; None where clamping
            or sign were chosen one by one.
        target_layers: names of the layers whose output is `features`.
        profile: "fused" (CAMs in the graph), "split" (features and CAM weights out) or
            "features" (those alone: a method whose CAMs the runtime makes).
        classes: the classes that get a CAM.
        preprocessing: how an image becomes the input.
        num_classes: number of classes, C.
        task: what the logits mean, and so what a class's probability is: "single-label", one class
            an image, the softmax of all logits; "multi-label", any number of classes an image, the
            sigmoid of the class's own logit; "binary", a network with one logit l, whose two
            classes have the logits -l and l and the sigmoids of these.
        feature_shapes: (N, h, w) of the features of each target layer.
        class_names: C names, or empty if unknown.
        source: where the artifact comes from.
        parity: the parity report; None only while a file is being made.
        kind: "artifact": image in, prediction and CAMs out; "head": the second file, which
            makes CAMs of further classes from what the artifact emitted.
        method_options: the numbers that the method was built with, by name.
        head_input: the output of the artifact that its head graph takes: "features", or
            "head_input" where the head needs more than the features. None without one.
        fidelity: what the precision of `sigcam quantize` costs; None for float32.
        digest: the SHA-256 of the file that carries the spec, with these digits read as zeros
            (see `sigcam.core.digest`); None only while a file is being made. Specs that differ in
            nothing but digests are equal: they say the same.
        external_data: the files beside the graph that hold its weights, by name, with the SHA-256
            of each; empty where the weights are in the graph's own file.
        head_digest: the digest of the head graph that belongs to the artifact; None without one.

    Example:
        >>> spec = Spec(
        ...     method="cam", branch="sigmoid", nwc=True, target_layers=("layer4",),
        ...     profile="fused", classes=ClassSelection("topk", 2),
        ...     preprocessing=Preprocessing(224, 224, resize=256), num_classes=3,
        ...     feature_shapes=((512, 7, 7),), source=Source("resnet18", "0" * 64),
        ...     class_names=("cat", "dog", "owl"),
        ... )
        >>> Spec.from_json(spec.to_json()) == spec
        True
        >>> spec.cam_shape, spec.label(2)
        ((7, 7), 'owl')
    """

    method: str
    branch: Branch
    nwc: bool
    target_layers: tuple[str, ...]
    profile: Profile
    classes: ClassSelection
    preprocessing: Preprocessing
    num_classes: int
    feature_shapes: tuple[tuple[int, int, int], ...]
    source: Source
    class_names: tuple[str, ...] = ()
    parity: ParityReport | None = None
    kind: Kind = "artifact"
    method_options: Mapping[str, float] = field(default_factory=dict)
    head_input: str | None = None
    fidelity: FidelityReport | None = None
    signed: bool = False
    purpose: Purpose | None = None
    task: Task = "single-label"
    digest: str | None = field(default=None, compare=False)
    external_data: Mapping[str, str] = field(default_factory=dict)
    head_digest: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self._check_digests()
        _choice("branch", self.branch, get_args(Branch))
        _choice("task", self.task, get_args(Task))
        _choice("profile", self.profile, get_args(Profile))
        if self.purpose is not None:
            _choice("purpose", self.purpose, get_args(Purpose))
        _positive("num_classes", self.num_classes)
        _choice("kind", self.kind, get_args(Kind))
        if len(self.feature_shapes) != len(self.target_layers) or not self.target_layers:
            raise UsageError(
                f"feature_shapes must have one (N, h, w) per target layer, got "
                f"{self.feature_shapes} for {self.target_layers}"
            )
        for shape in self.feature_shapes:
            if len(shape) != 3:
                raise UsageError(f"a feature shape must be (N, h, w), got {shape}")
            for size in shape:
                _positive("feature_shapes", size)
        if self.task == "binary" and self.num_classes != 2:
            raise UsageError(f"the task binary has 2 classes, got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise UsageError(
                f"class_names must have {self.num_classes} entries, got {len(self.class_names)}"
            )
        if self.classes.k > self.num_classes:
            raise UsageError(
                f"k must be at most the number of classes {self.num_classes}, got {self.classes.k}"
            )

    def _check_digests(self) -> None:
        for name, one in {**self.external_data, "digest": self.digest,
                          "head_digest": self.head_digest}.items():  # fmt: skip
            if one is not None and not (isinstance(one, str) and _DIGEST.fullmatch(one)):
                raise UsageError(f"{name} must be 64 hexadecimal digits, got {one!r}")
        for name in self.external_data:
            if not name or "/" in name or "\\" in name or name in (".", ".."):
                raise UsageError(f"external_data must name files beside the graph, got {name!r}")

    @property
    def cam_shape(self) -> tuple[int, int]:
        """Returns (h, w) of the CAMs: the largest of the target layers', where they are fused."""
        h, w = max((shape[1:] for shape in self.feature_shapes), key=lambda size: size[0] * size[1])
        return h, w

    def label(self, class_id: int) -> str:
        """Returns the name of a class, or its id as text where names are unknown."""
        return self.class_names[class_id] if self.class_names else str(class_id)

    def to_json(self) -> str:
        """Returns the spec as one JSON object with `schema_version`, then `digest`."""
        # The digest first: what is found before any other text can't be of another part.
        begin = {"schema_version": SCHEMA_VERSION, "digest": self.digest}
        return json.dumps({**begin, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Reads what `to_json` wrote.

        Raises:
            SchemaError: not JSON, another schema version, or a missing or wrong field.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
        except (ValueError, KeyError, TypeError) as exc:
            raise SchemaError(
                "the spec is not a JSON object with 'schema_version'; export the model again"
            ) from exc
        check_schema_version(version, SCHEMA_VERSION, "the spec", "export the model again")
        try:
            spec = _spec_from_dict(data)
            check_types(spec)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise SchemaError(
                f"the spec has a missing or wrong field ({exc!r}); export the model again"
            ) from exc
        return spec


@dataclass(frozen=True)
class OutputError:
    """The largest difference of one output from the reference.

    Attributes:
        max_abs: max |got - want|.
        max_rel: max |got - want| / max |want| of a test image, the largest of all images; logits
            are compared with the largest logit of any of them.
    """

    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class ParityReport:
    """How closely the graph follows PyTorch.

    Attributes:
        reference: what the graph was compared with, e.g. "torch 2.14.1 float64".
        backend: what ran the graph, e.g. "onnxruntime 1.31.1 CPUExecutionProvider".
        tolerance: the largest `max_rel` at which a file is written.
        batch_sizes: the batch sizes that were tried.
        inputs: the test inputs, in words.
        outputs: the error of each output, by name.
        left_out: images that don't count: within rounding the gradient itself jumps there by more
            than the tolerance, or the model's own outputs aren't finite or move by as much.
        empty: images whose CAMs were zero everywhere, on which the comparison says little.
        file: the errors against the ONNX file that the classifier was read from: of "logits", and
            of "gradients" against differences of the file's output, where the method takes any.
    """

    reference: str
    backend: str
    tolerance: float
    batch_sizes: tuple[int, ...]
    inputs: str
    outputs: Mapping[str, OutputError]
    left_out: int = 0
    empty: int = 0
    file: Mapping[str, OutputError] = field(default_factory=dict)


@dataclass(frozen=True)
class FidelityReport:
    """How closely an artifact of another precision follows the float32 one.

    Measured by one backend on held-out images, none of which was used to calibrate.

    Attributes:
        precision: "int8": what leads to the logits computes in 8 bits; "int8-head": the
            sigmoid branch's large matrices are stored in 8 bits; "fp16", "bf16": all weights
            are stored in 16 bits.
        backend: what ran both, e.g. "onnxruntime 1.32.0 CPUExecutionProvider".
        images: number of held-out images that the agreement was measured on.
        calibration: number of images that the ranges of int8 were taken from; 0 without any.
        seed: seed of the shuffle that chose both kinds of images.
        agreement: share of the held-out images with the same most probable class, 0 to 1; for
            the task multi-label with the same classes of probability 0.5 or more.
        compared: number of images whose CAMs were compared, for the same class: float32's
            most probable one. These are all images where the graph takes `class_ids` (or picks
            several classes that include it), and otherwise those on which both chose that
            class. Images whose CAM is constant in both don't count.
        mean_correlation, worst_correlation: Pearson's, of the two CAMs of an image, -1 to
            1; 0 where one of them is constant. None where `compared` is 0.
        mean_box_iou: intersection over union of the largest boxes of the two heatmaps at the
            default threshold, 0 to 1; None where no compared image has a box.
        min_agreement, min_correlation: the limits below which no file is written.
        kept_float: layers that were kept in float32 to stay within these limits, and
            those that the user named.

    Example:
        >>> report = FidelityReport(
        ...     precision="int8", backend="onnxruntime", images=100, calibration=64, seed=0,
        ...     agreement=0.99, compared=99, mean_correlation=0.998, worst_correlation=0.97,
        ...     mean_box_iou=None, min_agreement=0.98, min_correlation=0.99,
        ... )
        >>> report.passes, report.described()[:26]
        (True, '99.0% of 100 images agree,')
    """

    precision: QuantizedPrecision
    backend: str
    images: int
    calibration: int
    seed: int
    agreement: float
    compared: int
    mean_correlation: float | None
    worst_correlation: float | None
    mean_box_iou: float | None
    min_agreement: float
    min_correlation: float
    kept_float: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Returns whether agreement and mean correlation reach their limits."""
        return (
            self.agreement >= self.min_agreement
            and self.mean_correlation is not None
            and self.mean_correlation >= self.min_correlation
        )

    def described(self) -> str:
        """Returns the measured numbers in words."""
        if self.mean_correlation is None or self.worst_correlation is None:
            cams = "no CAMs of the same class to compare"
        else:
            cams = (
                f"CAMs of {self.compared} correlate {self.mean_correlation:.4f} in the mean and "
                f"{self.worst_correlation:.4f} at worst"
            )
        boxes = "" if self.mean_box_iou is None else f", IoU of boxes {self.mean_box_iou:.3f}"
        return f"{self.agreement:.1%} of {self.images} images agree, {cams}{boxes}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FidelityReport:
        """Reads what `dataclasses.asdict` gave; keys that the report doesn't know are ignored."""
        known = _known(cls, data)
        known["kept_float"] = tuple(known.get("kept_float", ()))
        return cls(**known)


def _choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")


def _known(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of `data` that are fields of a dataclass."""
    return {one.name: data[one.name] for one in fields(cls) if one.name in data}


def _spec_from_dict(data: Mapping[str, Any]) -> Spec:
    """Makes a spec of what `to_json` wrote; raises whatever a missing or wrong field causes."""
    values = _known(Spec, data)
    values["target_layers"] = tuple(values["target_layers"])
    values["feature_shapes"] = tuple(tuple(shape) for shape in values["feature_shapes"])
    values["class_names"] = tuple(values.get("class_names", ()))
    values["classes"] = ClassSelection(**_known(ClassSelection, values["classes"]))
    values["preprocessing"] = Preprocessing(**_known(Preprocessing, values["preprocessing"]))
    values["source"] = Source(**_known(Source, values["source"]))
    if values.get("parity") is not None:
        parity = _known(ParityReport, values["parity"])
        parity["batch_sizes"] = tuple(parity["batch_sizes"])
        for kind in {"outputs", "file"} & parity.keys():
            errors = parity[kind].items()
            parity[kind] = {n: OutputError(**_known(OutputError, one)) for n, one in errors}
        values["parity"] = ParityReport(**parity)
    if values.get("fidelity") is not None:
        values["fidelity"] = FidelityReport.from_dict(values["fidelity"])
    return Spec(**values)
