"""Splits a classifier into features and head, and finds the layers that maps are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sigcam.classifier.graph import (
    ancestors,
    crossings,
    extract,
    module_of,
)
from sigcam.classifier.layer_names import (
    describe,
    modules_among,
    name_of,
    named_value,
    sizes,
)
from sigcam.classifier.layout import Value, layout_of
from sigcam.classifier.model_object import plain_model
from sigcam.classifier.squashing import Squashing, check_not_probabilities
from sigcam.classifier.target_layers import check_order, check_reach, default_target
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
# What belongs to the head although its output may still be a grid.
_HEAD_LIKE = _POOLS | {
    MARK,
    _aten.clone.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.contiguous.default,
    _aten._to_copy.default,
    _aten.slice.Tensor,
}
_TAG = "sigcam_tags"


@dataclass(frozen=True)
class Split:
    """A classifier cut in two.

    Attributes:
        features: images [B, 3, H, W] to the value of the branch layer; no dropout, frozen.
        head: the graph from that value to logits [B, C], with the sites of dropouts still
            marked (`sigcam::mark` nodes).
        traced: the whole classifier; it owns the head's tensors, by their original names.
        branch: the value where features end and heads begin: the output of `features`.
        targets: the values that maps are made of, in the order in which they were named.
        num_classes: C.
    """

    features: fx.GraphModule
    head: fx.Graph
    traced: Traced
    branch: Value
    targets: tuple[Value, ...]
    num_classes: int

    @property
    def squashing(self) -> Squashing | None:
        """Returns the function of its logits that the model returns; None for the logits."""
        return self.traced.squashing

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
            several times, the last run counts. None takes the last value with a grid of
            more than one position (see `Layout`) on the way to the logits that doesn't
            come out of average pooling, dropout or an identity.
        target_layers: layers that maps are made of, at or before the branch layer, named
            in the same way. None named: see `default_target`.

    Raises:
        ModelError: a layer doesn't exist or doesn't return a grid, or one whose positions
            are in another order than the image's; the logits don't depend on it, or not
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
    if branch_layer is None:
        node = _last_grid(traced)
        branch_layer = name_of(traced.graph, node)
    else:
        node = _branch_node(traced, branch_layer)
    _tag(node, "branch")
    for index, layer in enumerate(target_layers):
        _tag(_target_node(traced, layer, node, branch_layer), f"target {index}")
    features = _features(traced, node)
    branch = _tagged(features, "branch", branch_layer)
    head = extract(node, traced.logits, traced.image, _lifted(traced), "features")
    targets = tuple(_tagged(features, f"target {i}", n) for i, n in enumerate(target_layers))
    module = module_of(unmarked(head), traced.tensor, "Head")
    if targets:
        check_reach(features, targets, module, example)
    else:
        targets = (default_target(features, branch, module, example),)
    num_classes = int(traced.logits.meta["val"].shape[1])
    parts = Split(features, head, traced, branch, targets, num_classes)
    _check_against_model(parts, example)
    check_order(features, targets, example)
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


def _tag(node: fx.Node, tag: str) -> None:
    """Notes a name in a node: unlike the node's own name, it survives copies of the graph."""
    node.meta[_TAG] = (*node.meta.get(_TAG, ()), tag)


def _tagged(features: fx.GraphModule, tag: str, layer: str) -> Value:
    """Returns the value of a tagged node, under the name of its layer."""
    image = next(iter(features.graph.nodes))
    node = next(n for n in features.graph.nodes if tag in n.meta.get(_TAG, ()))
    layout = layout_of(node, image)
    if layout is None:  # was checked on the graph that this one comes from
        raise ModelError(f"the layer {layer!r} doesn't return a grid; name another")
    return Value(layer, layout, node.name)


def _lifted(traced: Traced) -> Callable[[fx.Node], str | None]:
    """Returns a function that gives the original name of the tensor behind a placeholder."""

    def name(node: fx.Node) -> str | None:
        return traced.names.get(node.name) if node.op == "placeholder" else None

    return name


def _features(traced: Traced, end: fx.Node) -> fx.GraphModule:
    graph = extract(traced.image, end, traced.image, _lifted(traced), "images")
    return module_of(unmarked(graph), traced.tensor, "Features")


def _branch_node(traced: Traced, layer: str) -> fx.Node:
    node = _with_grid(traced, layer)
    others = crossings(node, traced.logits, traced.image)
    if others:
        listed = ", ".join(describe(n) for n in others[:4])
        raise ModelError(
            f"the logits need more than the output of {layer!r}: also {listed}; "
            f"name a later layer, after these have joined"
        )
    if not _trainable_after(traced, node):
        raise ModelError(
            f"nothing with parameters comes after {layer!r}, so there is no head to train; "
            f"name an earlier layer"
        )
    return node


def _target_node(traced: Traced, layer: str, branch: fx.Node, branch_layer: str) -> fx.Node:
    node = _with_grid(traced, layer)
    if node not in ancestors(branch):
        raise ModelError(
            f"the target layer {layer!r} must come before the head, which begins at the branch "
            f"layer {branch_layer!r}; name an earlier target layer or a later branch layer"
        )
    return node


def _with_grid(traced: Traced, layer: str) -> fx.Node:
    node = named_value(traced, layer)
    if layout_of(node, traced.image) is None:
        raise ModelError(
            f"the layer {layer!r} must give a grid [B, N, h, w] with h * w > 1, [B, h, w, N], or "
            f"tokens [B, T, N] of one, it gives {sizes(node)}; "
            f"name an earlier layer"
        )
    return node


def _last_grid(traced: Traced) -> fx.Node:
    on_path = ancestors(traced.logits)
    passed = ""
    node: fx.Node
    for node in reversed(traced.graph.nodes):
        if node not in on_path or node.op != "call_function" or node.target in _HEAD_LIKE:
            continue
        if layout_of(node, traced.image) is None or not _trainable_after(traced, node):
            continue
        others = crossings(node, traced.logits, traced.image)
        if others:
            listed = ", ".join(describe(other) for other in others[:3])
            passed = passed or f" (beside {describe(node)}, they need {listed})"
        elif not _is_pooled(node, traced.image):
            return node
    raise ModelError(
        f"no grid [B, N, h, w], [B, h, w, N] or [B, T, N] with h * w > 1, followed by layers with "
        f"parameters, leads alone to the logits{passed}; name a branch layer, or a larger input"
    )


def _is_pooled(node: fx.Node, image: fx.Node) -> bool:
    """Returns whether all of a value comes out of a pooling to one value per channel.

    Such a value can look like a grid: ConvNeXt's [B, 1, 1, N], with the channels last.
    """
    pools = [n for n in ancestors(node) if n.target in _POOLS and layout_of(n, image) is None]
    return any(not crossings(pool, node, image) for pool in pools)


def _trainable_after(traced: Traced, node: fx.Node) -> bool:
    lifted = [n for n in ancestors(traced.logits, stop=[node]) if n.name in traced.names]
    parameters = dict(traced.model.named_parameters())
    return any(traced.names[n.name] in parameters for n in lifted)


def _check_against_model(parts: Split, example: Tensor) -> None:
    """Refuses a split whose parts don't compute what the model does on random images."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, *example.shape[1:])
    images = torch.randn(shape, generator=generator)
    parameter = next(parts.traced.model.parameters(), images)
    images = images.to(parameter.device)
    head = module_of(unmarked(parts.head), parts.traced.tensor, "Head")
    try:
        with torch.no_grad():
            logits = head(parts.features(images))
            got, want = parts.traced.squashed(logits), parts.traced.original(images)
    except RuntimeError as exc:  # no memory, or what only a real image brings to light
        raise explained(parts.traced.model, images, exc) from exc
    difference = (got - want).abs().max().item()
    # NaN weights give NaN on both sides; they are the export's and training's to report.
    if difference > 1e-3 * max(want.abs().max().item(), 1e-6):
        raise ModelError(
            f"the split model's logits differ from the model's by {difference:.3g}; "
            f"forward must be deterministic in inference mode and keep no state"
        )
    check_not_probabilities(logits, head, parts.branch.layout.value_shape)
