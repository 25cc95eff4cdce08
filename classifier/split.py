"""Splits a classifier into features and head, and finds the layers that maps are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from sigcam.classifier.graph import (
    ValueRecorder,
    ancestors,
    clean_cuts,
    crossings,
    extract,
    has_batch,
    module_of,
    random_images,
    sizes_of,
)
from sigcam.classifier.layer_names import (
    ModuleRuns,
    describe,
    modules_among,
    name_of,
    named_value,
    other_runs,
)
from sigcam.classifier.layout import BranchValue, Layout, Value, layout_of
from sigcam.classifier.model_object import plain_model
from sigcam.classifier.one_logit import OneLogit, with_two_logits
from sigcam.classifier.per_image import check_per_image
from sigcam.classifier.place import check_place
from sigcam.classifier.spectrum import is_spectrum
from sigcam.classifier.squashing import Squashing, check_not_probabilities
from sigcam.classifier.target_layers import check_reach, default_target
from sigcam.classifier.trace import MARK, Traced, trace
from sigcam.classifier.trace_failure import explained
from sigcam.core.errors import ModelError

_aten = torch.ops.aten
_POOLS = {
    _aten.adaptive_avg_pool2d.default,
    _aten._adaptive_avg_pool2d.default,
    _aten.avg_pool2d.default,
    _aten.mean.dim,
}
_PADDINGS = {
    _aten.constant_pad_nd.default,
    _aten.pad.default,
    _aten.reflection_pad2d.default,
    _aten.replication_pad2d.default,
}
"""They belong to what comes behind: a padded grid has positions that the image hasn't."""
# What belongs to the head although its output may still be a grid.
_HEAD_LIKE = (
    _POOLS
    | _PADDINGS
    | {
        MARK,
        _aten.clone.default,
        _aten.alias.default,
        _aten.detach.default,
        _aten.contiguous.default,
        _aten._to_copy.default,
        _aten.slice.Tensor,
    }
)
_TAG = "sigcam_tags"
ORIGIN = "sigcam_origin"
"""Where a node's name in the traced graph is kept; copies of the node keep it."""
_NAMED = 4
"""Most layers that are named as advice."""
_IMAGES = 3
"""How many random images the parts are compared with the model on."""


@dataclass(frozen=True)
class Split:
    """A classifier cut in two.

    Attributes:
        features: images [B, 3, H, W] to the value of the branch layer; no dropout, frozen.
        head: the graph from that value to logits [B, C], with the sites of dropouts still
            marked (`sigcam::mark` nodes).
        traced: the whole classifier; it owns the head's tensors, by their original names.
        branch: the value where features end and heads begin: the output of `features`. It
            holds a grid, unless target layers were named that lie beside others.
        targets: the values that maps are made of, in the order in which they were named.
        num_classes: C; 2 for a model with one logit l, of which the head makes [-l, l].
    """

    features: fx.GraphModule
    head: fx.Graph
    traced: Traced
    branch: BranchValue
    targets: tuple[Value, ...]
    num_classes: int

    @property
    def squashing(self) -> Squashing | None:
        """Returns the function of its logits that the model returns; None for the logits."""
        return self.traced.squashing

    @property
    def one_logit(self) -> bool:
        """Returns whether the model itself gives one logit l, of which the head makes [-l, l]."""
        return self.traced.one_logit

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns a line for the user about each thing that isn't taken as the model gives it."""
        return self.traced.notes

    def __deepcopy__(self, memo: object) -> Split:
        """Returns itself: it is only read, and its graphs hold values that can't be copied."""
        return self


def split(
    model: nn.Module,
    example: Tensor,
    branch_layer: str | None = None,
    target_layers: Sequence[str] = (),
) -> Split:
    """Cuts a copy of `model` at the output of a layer.

    Args:
        model: a classifier, images to logits; it isn't changed.
        example: float32 [B, 3, H, W]; only its shape matters.
        branch_layer: where the head begins: a module's name ("layer4", "features",
            "layer4.1"), or a name that an earlier split gave. Of a module that runs
            several times, the last run counts, or the one that a number behind the name
            says ("layer4#1"). None takes the last value with a grid of more than one
            position (see `Layout`) on the way to the logits that doesn't come out of
            average pooling, dropout or an identity; where the target layers don't lie
            before it, the first value after them that alone leads to the logits.
        target_layers: layers that maps are made of, at or before the branch layer, named
            in the same way. None named: see `default_target`.

    Raises:
        ModelError: a layer doesn't exist or doesn't return a grid, or one whose positions
            don't lie as the image's do; the logits don't depend on it, or not
            on the branch layer alone; or the model can't be exported.

    Example:
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> parts = split(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> parts.branch.layer, parts.branch.layout.shape, parts.num_classes
        ('0', (4, 6, 6), 2)
    """
    model = plain_model(model)
    named = [branch_layer, *target_layers] if branch_layer is not None else [*target_layers]
    traced = trace(model, example, modules_among(model, named))
    if int(traced.logits.meta["val"].shape[1]) == 1:
        traced = with_two_logits(traced)
    check_per_image(traced)
    _refuse_half_precision(traced)
    for node in traced.graph.nodes:
        node.meta[ORIGIN] = node.name
    target_nodes = [_with_grid(traced, layer) for layer in target_layers]
    if branch_layer is None:
        node = _found_branch(traced, target_nodes, example)
    else:
        node = _branch_node(traced, branch_layer, target_layers)
        _check_before(node, branch_layer, dict(zip(target_layers, target_nodes, strict=True)))
    _tag(node, "branch")
    for index, target in enumerate(target_nodes):
        _tag(target, f"target {index}")
    features = _features(traced, node)
    branch = _branch_value(features, branch_layer or name_of(traced.graph, node))
    head = extract(node, traced.logits, traced.image, _lifted(traced), "features")
    targets = tuple(_target_value(features, f"target {i}", n) for i, n in enumerate(target_layers))
    module = module_of(unmarked(head), traced.tensor, "Head")
    if targets:
        check_reach(features, targets, module, example)
    else:
        targets = (default_target(features, _grid_of(branch), module, example),)
    num_classes = int(traced.logits.meta["val"].shape[1])
    parts = Split(features, head, traced, branch, targets, num_classes)
    parts = _checked_against_model(parts, example, named)
    check_place(features, parts.targets, example, lambda layer: _other_run(traced, layer, example))
    return parts


def unmarked(graph: fx.Graph) -> fx.Graph:
    """Copies a graph without its marks, which are identities.

    Args:
        graph: a traced graph, or a part of one; it isn't changed.

    Example:
        >>> graph = fx.Graph()
        >>> marked = graph.call_function(MARK, (graph.placeholder("x"), "layer:conv1", 0.0))
        >>> _ = graph.output(marked)
        >>> [node.op for node in unmarked(graph).nodes]
        ['placeholder', 'output']
    """
    new = fx.Graph()
    new.output(new.graph_copy(graph, val_map={}))
    for node in new.find_nodes(op="call_function", target=MARK):
        source = node.args[0]
        for tag in node.meta.get(_TAG, ()):
            _tag(source, tag)
        node.replace_all_uses_with(source)
        new.erase_node(node)
    return new


def _refuse_half_precision(traced: Traced) -> None:
    """Refuses logits that are computed in fewer bits inside, by autocast or casts."""
    before = ancestors(traced.logits)
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        half = getattr(value, "dtype", None) in (torch.float16, torch.bfloat16)
        if half and node in before and has_batch(node, traced.image):
            raise ModelError(
                f"the model must compute in float32, {describe(node)} is {value.dtype} (autocast "
                f"inside forward, or a cast); take that out of forward, and make the exported file "
                f"smaller afterwards (sigcam quantize)"
            )


def _tag(node: fx.Node, tag: str) -> None:
    """Notes a name in a node: unlike the node's own name, it survives copies of the graph."""
    node.meta[_TAG] = (*node.meta.get(_TAG, ()), tag)


def _tagged(features: fx.GraphModule, tag: str) -> tuple[fx.Node, Layout | None]:
    """Returns the node of a tag, and the layout of its value."""
    image = next(iter(features.graph.nodes))
    node = next(n for n in features.graph.nodes if tag in n.meta.get(_TAG, ()))
    return node, layout_of(node, image)


def _branch_value(features: fx.GraphModule, layer: str) -> BranchValue:
    node, layout = _tagged(features, "branch")
    return BranchValue(layer, layout, node.name)


def _target_value(features: fx.GraphModule, tag: str, layer: str) -> Value:
    node, layout = _tagged(features, tag)
    if layout is None:  # was checked on the graph that this one comes from
        raise ModelError(f"the layer {layer!r} doesn't return a grid; name another")
    return Value(layer, layout, node.name)


def _grid_of(branch: BranchValue) -> Value:
    assert branch.layout is not None  # noqa: S101 (without target layers it holds a grid)
    return Value(branch.layer, branch.layout, branch.node)


def _lifted(traced: Traced) -> Callable[[fx.Node], str | None]:
    """Returns a function that gives the original name of the tensor behind a placeholder."""

    def name(node: fx.Node) -> str | None:
        return traced.names.get(node.name) if node.op == "placeholder" else None

    return name


def _features(traced: Traced, end: fx.Node) -> fx.GraphModule:
    graph = extract(traced.image, end, traced.image, _lifted(traced), "images")
    return module_of(unmarked(graph), traced.tensor, "Features")


def _branch_node(traced: Traced, layer: str, target_layers: Sequence[str]) -> fx.Node:
    # Where maps are made of other layers, the branch may begin at a value without a grid.
    node = named_value(traced, layer) if target_layers else _with_grid(traced, layer)
    others = crossings(node, traced.logits, traced.image)
    if others:
        listed = ", ".join(describe(n) for n in others[:4])
        raise ModelError(
            f"the logits need more than the output of {layer!r}: also {listed}; "
            f"{_where_else(traced)}"
        )
    if not _trainable_after(traced, node):
        raise ModelError(
            f"nothing with parameters comes after {layer!r}, so there is no head to train; "
            f"{_where_else(traced)}"
        )
    return node


def _where_else(traced: Traced) -> str:
    """Says at which layer a branch can begin, as advice for a layer where it can't."""
    node = _last_grid(traced)
    if node is not None:
        return f"a branch can begin at {name_of(traced.graph, node)!r}: leave the branch layer out"
    return (
        "leave the branch layer out and name target layers instead: their maps come from the "
        "classifier's own head (the branch softmax or centred)"
    )


def _check_before(branch: fx.Node, branch_layer: str, targets: Mapping[str, fx.Node]) -> None:
    before = ancestors(branch)
    for layer, node in targets.items():
        if node not in before:
            raise ModelError(
                f"the target layer {layer!r} must come before the head, which begins at the branch "
                f"layer {branch_layer!r}; leave the branch layer out (and the branch file that "
                f"names it), and the head begins after the target layer; or leave the target "
                f"layer out"
            )


def _with_grid(traced: Traced, layer: str) -> fx.Node:
    node = named_value(traced, layer)
    if layout_of(node, traced.image) is None:
        raise ModelError(
            f"the layer {layer!r} must give a grid [B, N, h, w] with h * w > 1, [B, h, w, N], or "
            f"tokens [B, T, N] of one, it gives {sizes_of(node)}; "
            f"name an earlier layer"
        )
    return node


def _found_branch(traced: Traced, targets: Sequence[fx.Node], example: Tensor) -> fx.Node:
    """Finds where the head begins: at the last grid, or right after the target layers.

    A target layer may lie beside others, as the scales of a pyramid or the networks of an
    ensemble do, or after the last grid that has parameters behind it. The head then begins
    where all that leads to the logits has joined again: at the logits themselves in the end.
    """
    grid = _last_grid(traced)
    if grid is not None and ancestors(grid).issuperset(targets):
        return grid
    if not targets:
        raise ModelError(
            f"no grid [B, N, h, w], [B, h, w, N] or [B, T, N] with h * w > 1, followed by layers "
            f"with parameters, leads alone to the logits{_way_out(traced, example)}"
        )
    return next(
        node
        for node in clean_cuts(traced.logits, traced.image)
        if has_batch(node, traced.image) and ancestors(node).issuperset(targets)
    )


def _last_grid(traced: Traced) -> fx.Node | None:
    """Returns the last grid that alone leads to the logits, with parameters behind it.

    A spectrum's positions are frequencies, so a learnt grid before the transform is preferred.
    """
    spectrum: fx.Node | None = None
    for node in reversed(clean_cuts(traced.logits, traced.image)):
        if node.op != "call_function" or node.target in _HEAD_LIKE:
            continue
        if layout_of(node, traced.image) is None or not _trainable_after(traced, node):
            continue
        if _is_pooled(node, traced.image):
            continue
        if is_spectrum(node):
            spectrum = spectrum or node
        elif spectrum is None or _trainable_before(traced, node):
            return node
    return spectrum


def _other_run(traced: Traced, layer: str, example: Tensor) -> str:
    """Says which run of a layer lies as the image does, where the one that was named doesn't."""
    runs = other_runs(traced, layer)
    found = _in_place(traced, runs, example)
    if not found:
        return ""
    return (
        f". The layer runs {len(runs) + 1} times; its run {found[0]!r}, which can be named so, "
        f"lies as the image does"
    )


def _in_place(traced: Traced, nodes: Mapping[str, fx.Node], example: Tensor) -> list[str]:
    """Returns the names of those grids that lie as the image's do."""
    whole = _features(traced, traced.logits)
    own = {n.meta[ORIGIN]: n.name for n in whole.graph.nodes if ORIGIN in n.meta}
    found = []
    for name, node in nodes.items():
        layout = layout_of(node, traced.image)
        if layout is not None and node.name in own:
            with contextlib.suppress(ModelError):
                check_place(whole, [Value(name, layout, own[node.name])], example)
                found.append(name)
    return found


def _way_out(traced: Traced, example: Tensor) -> str:
    """Says which layers can be named where no branch layer is found."""
    whole = _features(traced, traced.logits)
    nodes = _grids(traced)[-_NAMED:]
    if not nodes:
        return "; give a larger input, or a network that keeps a grid"
    images = random_images(traced.model, example, _IMAGES)
    named = dict(zip(_names(traced, whole, nodes, images)[0], nodes, strict=True))
    names = _in_place(traced, named, example) or list(named)
    return (
        f", which need several at once; name target layers, such as "
        f"{' or '.join(names)}: their maps come from the classifier's own head "
        f"(the branch softmax or centred)"
    )


def _grids(traced: Traced) -> list[fx.Node]:
    """Returns the last grid of each size and each way to the logits, earlier ones first."""
    on_path = ancestors(traced.logits)
    grids = [
        n
        for n in traced.graph.nodes
        if n in on_path
        and n.op == "call_function"
        and n.target not in _HEAD_LIKE
        and layout_of(n, traced.image) is not None
    ]
    last: list[fx.Node] = []
    after: set[fx.Node] = set()
    for node in reversed(grids):
        if node not in after:  # else a later grid is computed from it
            last.append(node)
            after |= ancestors(node)
    return last[::-1]


def _is_pooled(node: fx.Node, image: fx.Node) -> bool:
    """Returns whether all of a value comes out of a pooling to one value per channel.

    Such a value can look like a grid: ConvNeXt's [B, 1, 1, N], with the channels last.
    """
    # What isn't by image (a mean over each patch) leaves the patches' grid.
    pools = [
        n
        for n in ancestors(node)
        if n.target in _POOLS and has_batch(n, image) and layout_of(n, image) is None
    ]
    return any(not crossings(pool, node, image) for pool in pools)


def _trainable_after(traced: Traced, node: fx.Node) -> bool:
    return _any_parameter(traced, ancestors(traced.logits, stop=[node]))


def _trainable_before(traced: Traced, node: fx.Node) -> bool:
    return _any_parameter(traced, ancestors(node))


def _any_parameter(traced: Traced, nodes: set[fx.Node]) -> bool:
    parameters = dict(traced.model.named_parameters())
    return any(traced.names.get(n.name) in parameters for n in nodes)


def _checked_against_model(parts: Split, example: Tensor, named: Sequence[str]) -> Split:
    """Compares the parts with the model on random images, and names what was found.

    The same run of the model says which module returns the branch layer's and the target
    layers' values, so the names lead back to them.

    Raises:
        ModelError: the parts don't compute what the model does.
    """
    traced, features = parts.traced, parts.features
    values: list[BranchValue] = [parts.branch, *parts.targets]
    origins = {n.name: n.meta[ORIGIN] for n in features.graph.nodes if ORIGIN in n.meta}
    by_name = {n.name: n for n in traced.graph.nodes}
    nodes = [by_name[origins[value.node]] for value in values]
    images = random_images(traced.model, example, _IMAGES)
    head: nn.Module = module_of(unmarked(parts.head), traced.tensor, "Head")
    try:
        names, value, want = _names(traced, features, nodes, images)
        with torch.no_grad():
            logits = head(value)
            got = traced.squashed(logits)
    except RuntimeError as exc:  # no memory, or what only a real image brings to light
        raise explained(traced.model, images, exc) from exc
    difference = (got - want).abs().max().item()
    # NaN weights give NaN on both sides; they are the export's and training's to report.
    # Probabilities in half precision differ by what that rounds away.
    tolerance = max(1e-3, 4 * torch.finfo(traced.precision).eps)
    if difference > tolerance * max(want.abs().max().item(), 1e-6):
        raise ModelError(
            f"the split model's logits differ from the model's by {difference:.3g}; "
            f"forward must be deterministic in inference mode and keep no state"
        )
    if traced.one_logit:
        head, logits = OneLogit(head), logits[:, 1:]
    check_not_probabilities(logits, head, tuple(value.shape[1:]))
    layers = [
        one.layer if one.layer in named else name for one, name in zip(values, names, strict=True)
    ]
    return replace(
        parts,
        branch=replace(parts.branch, layer=layers[0]),
        targets=tuple(
            replace(value, layer=layer)
            for value, layer in zip(parts.targets, layers[1:], strict=True)
        ),
    )


def _names(
    traced: Traced, features: fx.GraphModule, nodes: Sequence[fx.Node], images: Tensor
) -> tuple[list[str], Tensor, Tensor]:
    """Returns names that lead back to values, what the features and what the model give."""
    own = {n.meta[ORIGIN]: n.name for n in features.graph.nodes if ORIGIN in n.meta}
    recorder = ValueRecorder(features, {own[node.name] for node in nodes})
    runs = ModuleRuns(traced, nodes)
    with torch.no_grad(), runs:
        value, output = recorder.run(images), traced.original(images)
    names = [runs.name(node, recorder.values[own[node.name]]) for node in nodes]
    return names, value, output
