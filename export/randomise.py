"""Computes CAMs while what a network learnt is lost, from the output down to the input.

That is the cascading randomisation of Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018, Section 3.1. What the CAMs of it are compared by is `sigcam.evaluate.sanity`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, pairwise, takewhile

import numpy as np
import torch
from torch import Tensor, fx, nn

from sigcam.classifier.build import BuiltClassifier
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.graph import attribute
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.export.export import completed_options, dual_of, preprocessing_of
from sigcam.export.methods import method_of
from sigcam.export.modules import CamGraph, Normalise
from sigcam.export.options import ExportOptions

MAX_STAGES = 10
"""The most stages below the head; layers that stand together are redrawn together beyond it."""

INTACT, HEAD = "intact", "head"

_OTHERS = ("gradcam", "reciprocam")  # the second takes no gradient

_STATISTICS = ("running_mean", "running_var")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Layers that are redrawn together.

    Attributes:
        name: the module that holds them all and nothing else, or the first and the last of
            them, from the output to the input: "layer4", "features.7 to 5".
        layers: the modules' names, from the output to the input (in a head, in any order). A
            parameter that the model itself holds stands by its own name.
    """

    name: str
    layers: tuple[str, ...]


class Cascade:
    """Redraws a copy of a classifier stage by stage, and computes the CAMs after each.

    The first stage, "head", is every parameter of the head that the CAM weights come from. The
    others are the layers below it, from the last to the first.

    "Re-initialised" is read as: the entries of each tensor change places at random. So values
    keep their distribution, and activations their scale, however the network was trained. The
    vectors of one layer (scales, shifts and running statistics of a norm) change places
    together: a channel with next to no variance would otherwise get another one's scale.

    Attributes:
        options: what is computed, with what the classifier adds to it.
        preprocessing: how an image becomes the input, raw pixels [H, W, n].
        stages: what is redrawn, in order.

    Example:
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
        >>> cascade = Cascade(dual, ExportOptions())
        >>> [stage.name for stage in cascade.stages]
        ['head', '0']
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
        >>> [(name, cams.shape) for name, cams in cascade.run(images)]
        [('intact', (2, 6, 6)), ('head', (2, 6, 6)), ('0', (2, 6, 6))]
    """

    def __init__(
        self,
        classifier: BuiltClassifier | DualBranch,
        options: ExportOptions,
        *,
        seed: int = 0,
        max_stages: int = MAX_STAGES,
    ) -> None:
        """Copies the classifier.

        Args:
            classifier: as for `export_artifact`; it isn't changed.
            options: method, branch, clamping and sign of the CAMs; classes and how a file is
                written don't matter.
            seed: what entries are moved by, at least 0.
            max_stages: the most stages below the head, at least 1.

        Raises:
            UsageError: options that contradict the classifier; a method that the runtime computes;
                a number out of range.
            ModelError: weights that aren't finite.
            ExportError: the method can't express this head, or its gradient can't be traced.
        """
        if seed < 0 or max_stages < 1:
            raise UsageError(
                f"seed must be at least 0 and max_stages at least 1, got {seed} and {max_stages}"
            )
        if not method_of(options.method).in_graph:
            raise UsageError(
                f"the maps of {options.method} are computed by the runtime, and this check makes "
                f"those of methods in the graph; use one of them, such as {' or '.join(_OTHERS)}"
            )
        self.options = completed_options(options, classifier)
        self.preprocessing: Preprocessing = preprocessing_of(options, classifier).raw
        dual = dual_of(classifier)
        dual.check_finite(sigmoid=self.options.has_sigmoid)
        # Never the caller's, which redrawing would spoil.
        self._dual = copy.deepcopy(dual).cpu().eval()
        self._seed = seed
        self._graph = CamGraph(self._dual, self.options)
        features, is_sigmoid = self._dual.features, self.options.branch == "sigmoid"
        head = self._dual.sigmoid_head if is_sigmoid else self._dual.softmax_head
        of_head, below = _learnt(head.classifier), _learnt(features)
        stages = grouped(layers_from_output(features), max_stages)
        self.stages: tuple[Stage, ...] = (Stage(HEAD, tuple(of_head)), *stages)
        self._tensors = [[*of_head.values()], *([below[n] for n in s.layers] for s in stages)]

    def run(self, images: Array, batch_size: int = 8) -> Iterator[tuple[str, Array]]:
        """Computes the CAMs of the intact network, then those after each stage.

        The class of an image is the one that the intact softmax branch predicts, at all
        stages. A cascade runs once: afterwards nothing is left of what was learnt.

        Args:
            images: raw pixels [P, H, W, n], as `preprocessing` makes them.
            batch_size: images in one pass.

        Yields:
            The name of the stage and its CAMs, float32 [P, h, w]; the first is "intact".
        """
        random = np.random.default_rng(self._seed)
        class_ids, cams = self._cams(images, None, batch_size)
        yield INTACT, cams
        for stage, layers in zip(self.stages, self._tensors, strict=True):
            for tensors in layers:
                redraw(tensors, random)
            # Anew, because what was made of the weights beforehand is part of the graph.
            self._graph = CamGraph(self._dual, self.options)
            yield stage.name, self._cams(images, class_ids, batch_size)[1]

    def _cams(
        self, images: Array, class_ids: Tensor | None, batch_size: int
    ) -> tuple[Tensor, Array]:
        normalise = Normalise(self.preprocessing)
        graph, chosen, found = self._graph, [], []
        with torch.no_grad():
            for first in range(0, len(images), batch_size):
                part = slice(first, first + batch_size)
                entry = graph.cut.front(normalise(torch.from_numpy(images[part])))
                values = graph.weight_graph.run(entry)
                logits = graph.softmax_logits(values)
                ids = logits.argmax(1, keepdim=True) if class_ids is None else class_ids[part]
                chosen.append(ids)
                found.append(graph.explain(values, ids, logits)["cams"][:, 0])
        return torch.cat(chosen), torch.cat(found).float().numpy()


def layers_from_output(features: fx.GraphModule) -> list[str]:
    """Returns the names of the layers that hold parameters, from the output to the input.

    What counts is where a layer is used last.

    Args:
        features: images to the branch layer's value.

    Example:
        >>> layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        >>> net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))
        >>> layers_from_output(DualBranch(net, input_size=8).features)
        ['1', '0']
    """
    parameters = {name for name, _ in features.named_parameters()}
    found: dict[str, None] = {}
    for node in reversed(features.graph.nodes):
        for source in node.all_input_nodes:
            name = attribute(source)
            if name in parameters:
                found.setdefault(_owner(str(name)))
    return list(found)


def grouped(layers: Sequence[str], most: int) -> list[Stage]:
    """Puts neighbours into one stage until there are few enough.

    By the modules that hold them, at the deepest level that has few enough, if there no stage
    has more than half of the layers. Else two stages at a time: first those that share the most
    of their path, of these the ones with the fewest layers, of these the ones nearest to the
    input.

    Args:
        layers: names of modules, from the output to the input.
        most: how many stages there may be, at least 1.

    Example:
        >>> layers = ["block2.conv", "block2.norm", "block1.conv", "block1.norm", "stem"]
        >>> [stage.name for stage in grouped(layers, 3)]
        ['block2', 'block1', 'stem']
        >>> [stage.name for stage in grouped(["f.4", "f.2", "f.0"], 2)]
        ['f.4', 'f.2 to 0']
    """
    depths = range(max((name.count(".") for name in layers), default=0) + 1, 0, -1)
    by_depth = ([list(g) for _, g in groupby(layers, partial(_beginning, words=d))] for d in depths)
    few = next((groups for groups in by_depth if len(groups) <= most), [])
    is_even = 2 * max(map(len, few), default=0) <= len(layers)
    groups = few if few and is_even else [[name] for name in layers]
    while len(groups) > most:
        both = [one + other for one, other in pairwise(groups)]
        at = max(range(len(both)), key=lambda i: (len(_common(both[i])), -len(both[i]), i))
        groups[at : at + 2] = [both[at]]
    return [Stage(_name_of(group, layers), tuple(group)) for group in groups]


def redraw(tensors: Sequence[Tensor], random: np.random.Generator) -> None:
    """Moves the entries of one layer's tensors to random places, in the tensors themselves.

    Vectors of the same length move together.

    Args:
        tensors: floating tensors of any shapes, on the CPU.
        random: where the places come from.

    Example:
        >>> scale, shift = torch.arange(5.0), torch.arange(5.0) + 10
        >>> redraw([scale, shift], np.random.default_rng(0))
        >>> scale.tolist() != [0, 1, 2, 3, 4], (shift - scale).tolist()
        (True, [10.0, 10.0, 10.0, 10.0, 10.0])
    """
    orders: dict[int, Array] = {}
    with torch.no_grad():
        for tensor in tensors:
            if tensor.ndim == 1:
                order = orders.setdefault(len(tensor), random.permutation(len(tensor)))
                tensor.copy_(tensor[torch.from_numpy(order)])
            else:
                values = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
                values = values.flatten()
                random.shuffle(values.numpy())
                tensor.copy_(values.reshape(tensor.shape))


def _learnt(module: nn.Module) -> dict[str, list[Tensor]]:
    """Returns what the layers of a module learnt, by the names of the layers."""
    learnt = [
        *module.named_parameters(),
        *((name, value) for name, value in module.named_buffers() if name.endswith(_STATISTICS)),
    ]
    found: dict[str, list[Tensor]] = {}
    for name, value in learnt:
        if value.is_floating_point():
            found.setdefault(_owner(name), []).append(value)
    return found


def _owner(name: str) -> str:
    """Returns the name of the module that holds a tensor; the tensor's own where none does."""
    return name.rpartition(".")[0] or name


def _common(names: Sequence[str]) -> list[str]:
    """Returns the beginning that paths have in common, as words."""
    words = zip(*(name.split(".") for name in names), strict=False)
    return [same[0] for same in takewhile(lambda column: len({*column}) == 1, words)]


def _beginning(name: str, words: int) -> list[str]:
    return name.split(".")[:words]


def _name_of(group: Sequence[str], layers: Sequence[str]) -> str:
    if len(group) == 1:
        return group[0]
    whole = _common(group)
    inside = [name for name in layers if _beginning(name, len(whole)) == whole]
    if whole and len(inside) == len(group):
        return ".".join(whole)
    first, last = (_beginning(group[i], len(whole) + 1) for i in (0, -1))
    return f"{'.'.join(first)} to {last[-1]}"
