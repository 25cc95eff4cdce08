"""Holds the options of an export in one object, which is checked when it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sigcam.core.annotations import check_fields
from sigcam.core.errors import UsageError
from sigcam.core.spec import Branch, ClassSelection, Preprocessing, Profile, Purpose
from sigcam.export.methods import RUN_TIME_METHODS, Method, method_of
from sigcam.export.onnx_model import DEFAULT_OPSET, OPSETS

PURPOSES: Mapping[Purpose, bool] = {
    "localise": True,  # where is the object
    "discriminate": False,  # what speaks for this class and not for another
}
"""The two questions that users ask of a map, and whether negative weights are clamped for them.
Clamping serves the one and ruins the other: docs/results.md has the figures."""

DEFAULT_PURPOSE: Purpose = "discriminate"


@dataclass(frozen=True)
class ExportOptions:
    """What an exported graph computes, and how its file is written.

    Whatever can be checked without the model is checked here, so a mistake shows before a
    model is loaded. Functions that build the graph take the same object.

    Example:
        >>> from sigcam.export import ExportOptions
        >>> options = ExportOptions(method="finercam", method_options={"gamma": 0.4})
        >>> options.clamps, dict(options.method_options)
        (False, {'gamma': 0.4, 'similar': 3})
        >>> ExportOptions(classes="top5").selection
        ClassSelection(mode='topk', k=5)
        >>> ExportOptions(purpose="localise").clamps, ExportOptions().answers
        (True, 'discriminate')
        >>> ExportOptions(purpose="localise", method="hirescam").clamps
        False

    Attributes:
        method: the CAM method, a name in `METHODS`; or in `RUN_TIME_METHODS`, for heads whose
            gradients can't go into a graph.
        branch: the branch that the CAM weights come from: "sigmoid" for the trained branch,
            "softmax" for the classifier's own head, which gives the classic CAM, "centred" for
            that head with the mean over the classes taken off its logits.
        nwc: whether negative weights are clamped to 0 before the weighted sum. None leaves it
            to the purpose; methods with a weight for each position aren't clamped.
        signed: whether CAMs keep the sign of the weighted sum. If not, what is negative is 0, as
            in "Beyond Softmax", Eq. 6; the code of Choe et al. 2020 keeps it for cam.
        purpose: the question that the map shall answer (`PURPOSES`): "localise", where is the
            object: negative weights are clamped, as in "Beyond Softmax", Eq. 4; or
            "discriminate", what speaks for this class and not for another: they aren't. None:
            `DEFAULT_PURPOSE`, unless `nwc` or `signed` says otherwise.
        profile: "fused": the graph gives finished CAMs; "split": it gives the features and
            the signed CAM weights, and the runtime sums them. A method that the runtime
            computes (scorecam, eigencam) always has "features": those alone.
        classes: which classes get a map: a `ClassSelection`, or in words "top1" for the
            predicted one, "topK" for the K most probable ones (such as "top5"), "input" for
            those that the caller names at run time.
        preprocessing: how an image becomes the input. None takes that of the classifier, or
            ImageNet's for the input size of a bare `DualBranch`.
        class_names: the C names of the classes in the order of their ids. Empty takes those
            of the classifier, if it has any.
        trained_on: what the sigmoid branch was trained on, in words for the spec. None takes
            what the classifier says.
        has_sigmoid: whether the sigmoid branch counts as trained, where the classifier has a
            trained one. Without it there is no evidence, and the weights must come from the
            softmax branch.
        sigmoid_logits: whether the sigmoid branch's logits of all C classes are an output; set
            by scorecam of the sigmoid branch, which reads its scores there.
        features: whether the features are an output in the profile "fused" too. Methods of
            several passes need them at run time.
        head_graph: whether a second file is written (model.head.onnx beside model.onnx) that
            gives maps of further classes without running the backbone. It sets `features`.
        method_options: the numbers that the method is built with: gamma (0.6) and similar (3)
            for finercam, none for the others. What is left out gets its default.
        external_data: whether the weights go to a file of their own, "<name>.data" beside
            the graph. Those over 2 GiB always do.
        tolerance: the largest error to accept, as a share of an output's largest value;
            above 0 and below 1.
        opset: the version of the ONNX standard, 18 to 20.

    Raises:
        UsageError: a value that isn't allowed, or options that contradict each other.
    """

    method: str = "cam"
    branch: Branch = "sigmoid"
    nwc: bool | None = None
    signed: bool = False
    purpose: Purpose | None = None
    profile: Profile = "fused"
    classes: ClassSelection | str = "top1"
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] = ()
    trained_on: str | None = None
    has_sigmoid: bool = True
    sigmoid_logits: bool = False
    features: bool = False
    head_graph: bool = False
    method_options: Mapping[str, float] = field(default_factory=dict)
    external_data: bool = False
    tolerance: float = 1e-4
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        check_fields(self)
        method = method_of(self.method)
        _check_choice("opset", self.opset, OPSETS)
        self._settle_profile(method)
        self._check_purpose()
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        if method.need == "scores" and (self.nwc or self.signed):
            raise UsageError(
                f"{self.method} has no CAM weights that could be clamped, and its CAM no sign; "
                f"leave {'nwc' if self.nwc else 'signed'} out, or choose another method"
            )
        if self.nwc and not method.clamps:
            raise UsageError(
                f"{self.method} has a weight for each position and isn't clamped (clamping "
                f"would make hirescam layercam); leave nwc out, or choose another method"
            )
        if self.profile == "split" and not method.gives_weights:
            raise UsageError(
                f"the profile split gives features and CAM weights of one target layer, and "
                f"{self.method} has none that its CAM is made of; use the profile fused"
            )
        object.__setattr__(self, "classes", self.selection)
        self._check_sigmoid()
        self._complete_method_options(method.options)
        if method.contrasts:
            _check_contrast(**self.method_options)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "features", self.features or self.head_graph)

    @property
    def selection(self) -> ClassSelection:
        """Returns the classes that get a map, whether `classes` names them in words or not."""
        return self.classes if isinstance(self.classes, ClassSelection) else _parsed(self.classes)

    @property
    def clamps(self) -> bool:
        """Returns whether negative weights are clamped: `nwc`, or as the purpose wants it."""
        if self.nwc is not None:
            return self.nwc
        purpose = self.purpose or DEFAULT_PURPOSE
        return method_of(self.method).clamps and PURPOSES[purpose] and not self.signed

    @property
    def answers(self) -> Purpose | None:
        """Returns the purpose, also where it is the default; None where it was overridden."""
        if self.purpose is None and self.nwc is None and not self.signed:
            return DEFAULT_PURPOSE
        return self.purpose

    def _settle_profile(self, method: Method) -> None:
        """Gives a method that the runtime computes the profile "features", and no other one."""
        if method.in_graph:
            if self.profile == "features":
                raise UsageError(
                    f"the profile 'features' leaves the map to the runtime, and {self.method} is a "
                    f"method of the graph; use the method {' or '.join(RUN_TIME_METHODS)}, or the "
                    f"profile 'fused' with features=True"
                )
            return
        if self.profile == "split" or self.head_graph:
            wrong = "the profile 'split'" if self.profile == "split" else "a head graph"
            raise UsageError(
                f"{self.method} is computed at run time, so the graph has no CAM weights for "
                f"{wrong}; leave that out, or choose a method of the graph"
            )
        object.__setattr__(self, "profile", "features")
        object.__setattr__(self, "features", True)
        if self.method == "scorecam" and self.branch == "sigmoid":
            # Masked images are scored for the class of the whole one, whatever they show.
            object.__setattr__(self, "sigmoid_logits", True)

    def _check_purpose(self) -> None:
        if self.purpose is None:
            return
        wanted = PURPOSES[self.purpose]
        if self.signed or self.nwc not in (None, wanted):
            what = "signed" if self.signed else "nwc"
            raise UsageError(
                f"the purpose {self.purpose!r} {'clamps' if wanted else 'does not clamp'} negative "
                f"weights and cuts negative sums off; leave {what} out, or the purpose"
            )

    def _check_sigmoid(self) -> None:
        if not self.has_sigmoid and (self.branch == "sigmoid" or self.sigmoid_logits):
            wanted = "branch='sigmoid'" if self.branch == "sigmoid" else "sigmoid_logits=True"
            raise UsageError(
                f"{wanted} needs a trained sigmoid branch, but has_sigmoid is False; load one, "
                f"or export with branch='softmax' or 'centred' and without sigmoid_logits"
            )

    def _complete_method_options(self, defaults: Mapping[str, float]) -> None:
        unknown = sorted(self.method_options.keys() - defaults.keys())
        if unknown:
            raise UsageError(
                f"{' and '.join(unknown)} is no option of {self.method}"
                + (f", which has {' and '.join(sorted(defaults))}" if defaults else "")
                + "; leave it out"
            )
        object.__setattr__(self, "method_options", {**defaults, **self.method_options})


def _check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _parsed(text: str) -> ClassSelection:
    """Reads "top1", "topK" or "input"."""
    if text == "input":
        return ClassSelection("input")
    found = re.fullmatch(r"top([1-9][0-9]{0,8})", str(text))
    if found is None:
        raise UsageError(f"classes must be top1, topK (such as top5) or input, got {text!r}")
    return ClassSelection() if found[1] == "1" else ClassSelection("topk", int(found[1]))


def _check_contrast(gamma: float, similar: float) -> None:
    numbers = all(isinstance(value, (int, float)) for value in (gamma, similar))
    # NaN and infinity fail these comparisons.
    if not numbers or not 0 <= gamma <= 10 or not 1 <= similar <= 1000 or similar % 1:
        raise UsageError(
            f"finercam takes gamma from 0 to 10 and a whole number of similar classes "
            f"of at least 1, got gamma={gamma} and similar={similar}"
        )
