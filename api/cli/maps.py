"""The options that name a classifier and its map, the same for `sigcam export` and `sanity`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sigcam.cli.common import model_options, options, say
from sigcam.core.errors import UsageError

if TYPE_CHECKING:
    from sigcam.classifier.build import BuiltClassifier

F = TypeVar("F", bound=Callable[..., Any])

_CLASSIFIER = ("arch", "weights", "num_classes", "task", "branch_file", "target_layers")
_METHOD = ("method", "branch", "purpose", "nwc", "signed")
_NUMBERS = ("gamma", "similar")

_NO_BRANCH = (
    "the sigmoid branch needs --sigmoid-branch FILE (from `sigcam train`), or --weights with a "
    "checkpoint that holds one; --branch softmax and --branch centred need none"
)

_with_map = options(
    model_options,
    click.option(
        "--sigmoid-branch",
        "branch_file",
        type=click.Path(path_type=Path),
        help="Trained branch, from `sigcam train`; it also knows the architecture and weights.",
    ),
    click.option(
        "--branch",
        type=click.Choice(["sigmoid", "softmax", "centred"]),
        default="sigmoid",
        show_default=True,
        help="Branch that the CAM weights come from: the trained one; the classifier's own, as in "
        "the classic CAM; or that with the mean over the classes taken off its logits.",
    ),
    click.option(
        "--target-layer",
        "target_layers",
        multiple=True,
        help="Layer that the map is made of; found by itself when left out. LAYER#1 is the first "
        "run of a layer that runs several times. Repeat it to fuse the maps of several layers; "
        "refinecam needs several.",
    ),
    click.option(
        "--method",
        default="cam",
        show_default=True,
        help="cam, gradcam, gradcam++, xgradcam, layercam, hirescam, finercam, refinecam or "
        "reciprocam; or scorecam or eigencam, whose maps the runtime makes, for heads without a "
        "gradient in ONNX.",
    ),
    click.option(
        "--purpose",
        type=click.Choice(["localise", "discriminate"]),
        help="What the map is for: where the object is (negative weights clamped), or what speaks "
        "for this class and not for another (not clamped).  [default: discriminate]",
    ),
    click.option(
        "--nwc/--no-nwc",
        default=None,
        help="Clamp negative weights, or don't, whatever the purpose; layercam and hirescam never "
        "do.",
    ),
    click.option(
        "--signed",
        is_flag=True,
        help="Leave the weighted sum as it is; what is negative in it is 0 otherwise.",
    ),
    click.option("--gamma", type=float, help="Strength of finercam's contrast; 0.6 by default."),
    click.option("--similar", type=int, help="Classes that finercam compares with; 3 by default."),
)


def map_options(function: F) -> F:
    """Adds the options that name a classifier and its map.

    The command gets those of the classifier as `classifier`, for `build_named`, and those of the
    map as `chosen`, arguments of `ExportOptions`.
    """

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        classifier = {name: kwargs.pop(name) for name in _CLASSIFIER}
        chosen = {name: kwargs.pop(name) for name in _METHOD}
        numbers = {name: kwargs.pop(name) for name in _NUMBERS}
        given = {name: value for name, value in numbers.items() if value is not None}
        chosen["method_options"] = given
        return function(*args, classifier=classifier, chosen=chosen, **kwargs)

    return _with_map(gathered)  # type: ignore[return-value]


def check_branch_named(classifier: dict[str, Any]) -> None:
    """Refuses options that name nothing that a trained sigmoid branch could come from.

    Args:
        classifier: as `map_options` passes it.

    Raises:
        UsageError: no branch file, and no file of weights.
        ModelError: a file of weights that isn't there.
    """
    if classifier["branch_file"] is not None:
        return
    if classifier["weights"] is not None:
        from sigcam.classifier.zoo import weights_file

        if weights_file(classifier["weights"])[0] is not None:
            return
    raise UsageError(_NO_BRANCH)


def build_named(
    classifier: dict[str, Any], *, needs_sigmoid: bool, **preprocessing: Any
) -> BuiltClassifier:
    """Loads the classifier that the options name, and says where its branch comes from.

    Args:
        classifier: as `map_options` passes it.
        needs_sigmoid: whether there must be a trained sigmoid branch.
        preprocessing: size, mean, std, scale, channel_order, as for `build_classifier`; None for
            the model's own.

    Raises:
        UsageError: a trained sigmoid branch is needed, and the weights hold none.
        ModelError, BranchMismatchError: as `build_classifier`.
    """
    from sigcam.classifier.build import build_classifier

    say("loading the model")
    built = build_classifier(**classifier, **preprocessing)
    for line in built.notes:
        say(line)
    if needs_sigmoid and not built.has_sigmoid:
        weights = classifier["weights"]
        raise UsageError(f"{weights} holds no sigmoid branch for this model; {_NO_BRANCH}")
    if built.checkpoint is not None:
        say(f"the sigmoid branch is the one in {built.checkpoint}")
    return built
