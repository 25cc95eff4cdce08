"""Splits a classifier into features and head at a target layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sigcam.runtime.errors import ModelError
from sigcam.train.cut import ancestors, crossings, extract, is_grid, module_of
from sigcam.train.trace import MARK, TARGET, Traced, trace

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
}
_FORWARD = "forward"


@dataclass(frozen=True)
class Split:
    """A classifier cut in two.

    Attributes:
        features: images [B, 3, H, W] to F [B, N, h, w]; no dropout, frozen.
        head: the graph from F to logits [B, C], with the sites of dropouts still
            marked (`sigcam::mark` nodes).
        traced: where the head's tensors are, by their original names.
        target_layer: name of the layer whose output F is. A value that no module
            returns is named "<module>:<operator>" ("forward:relu" for the model's own
            forward function).
        feature_shape: (N, h, w).
        num_classes: C.
    """

    features: fx.GraphModule
    head: fx.Graph
    traced: Traced
    target_layer: str
    feature_shape: tuple[int, int, int]
    num_classes: int

    def __deepcopy__(self, memo: object) -> Split:
        """Itself: it is only read, and its graphs hold values that can't be copied."""
        return self


def split(model: nn.Module, example: Tensor, target_layer: str | None = None) -> Split:
    """Cuts a copy of `model` at the output of a layer.

    Args:
        model: a classifier, images to logits; it isn't changed.
        example: float32 [B, 3, H, W]; only its shape matters.
        target_layer: a module's name ("layer4", "features", "layer4.1"), or a name
            that an earlier split gave. Of a module that runs several times, the last
            run counts. None takes the last value [B, N, h, w] with h * w > 1 on the way
            to the logits that doesn't come out of average pooling, dropout or an
            identity.

    Raises:
        ModelError: the layer doesn't exist or doesn't return a grid, the logits don't
            come from it alone, or the model can't be exported.
    """
    by_module = target_layer is not None and ":" not in target_layer
    if by_module:
        _check_name(model, str(target_layer))
    traced = trace(model, example, target_layer if by_module else None)
    if by_module:
        target, name = _marked_target(traced, str(target_layer)), str(target_layer)
    elif target_layer is not None:
        target, name = _operator_target(traced, target_layer), target_layer
    else:
        target = _last_grid(traced)
        name = _name_of(traced.graph, target)
    shape = target.meta["val"].shape
    head = extract(target, traced.logits, traced.image, _lifted(traced), "features")
    result = Split(
        features=_features(traced, target),
        head=head,
        traced=traced,
        target_layer=name,
        feature_shape=(int(shape[1]), int(shape[2]), int(shape[3])),
        num_classes=int(traced.logits.meta["val"].shape[1]),
    )
    _check_against_model(result, example)
    return result


def unmarked(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` without its marks (they are identities)."""
    new = fx.Graph()
    new.output(new.graph_copy(graph, val_map={}))
    for node in new.find_nodes(op="call_function", target=MARK):
        node.replace_all_uses_with(node.args[0])
        new.erase_node(node)
    return new


def _lifted(traced: Traced) -> Callable[[fx.Node], str | None]:
    def name(node: fx.Node) -> str | None:
        return traced.names.get(node.name) if node.op == "placeholder" else None

    return name


def _features(traced: Traced, target: fx.Node) -> fx.GraphModule:
    graph = extract(traced.image, target, traced.image, _lifted(traced), "images")
    return module_of(unmarked(graph), traced.tensor, "Features")


def _check_name(model: nn.Module, name: str) -> None:
    known = [n for n, _ in model.named_modules() if n]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    top = [n for n, _ in model.named_children()]
    hint = f"did you mean {', '.join(near)}" if near else f"the top level has {', '.join(top)}"
    raise ModelError(f"the model has no layer {name!r}; {hint}")


def _marked_target(traced: Traced, name: str) -> fx.Node:
    on_path = ancestors(traced.logits)
    used = [
        n
        for n in traced.graph.find_nodes(op="call_function", target=MARK)
        if n.args[1] == TARGET and n in on_path
    ]
    if not used:
        raise ModelError(
            f"the logits don't depend on the output of the layer {name!r} in inference mode; "
            f"name a layer that the forward pass goes through"
        )
    return _checked(traced, used[-1], name)


def _operator_target(traced: Traced, name: str) -> fx.Node:
    path, _, operator = name.rpartition(":")
    on_path = ancestors(traced.logits)
    found = [
        n
        for n in traced.graph.nodes
        if n in on_path
        and is_grid(n, traced.image)
        and _operator(n) == operator
        and (_path(n) or _FORWARD) == path
    ]
    if not found:
        raise ModelError(
            f"the model has no value {name!r} of shape [B, N, h, w] on the way to its logits; "
            f"name a layer, or leave the target layer out"
        )
    return _checked(traced, found[-1], name)


def _checked(traced: Traced, target: fx.Node, name: str) -> fx.Node:
    if not is_grid(target, traced.image):
        value = target.meta["val"]
        raise ModelError(
            f"the target layer {name!r} must give a grid [B, N, h, w] with h * w > 1, it gives "
            f"{_sizes(value)}; name an earlier layer"
        )
    others = crossings(target, traced.logits, traced.image)
    if others:
        listed = ", ".join(_describe(n) for n in others[:4])
        raise ModelError(
            f"the logits need more than the output of {name!r}: also {listed}; "
            f"name a later layer, after these have joined"
        )
    if not _trainable_after(traced, target):
        raise ModelError(
            f"nothing with parameters comes after {name!r}, so there is no head to train; "
            f"name an earlier layer"
        )
    return target


def _last_grid(traced: Traced) -> fx.Node:
    on_path = ancestors(traced.logits)
    node: fx.Node
    for node in reversed(traced.graph.nodes):
        if node not in on_path or node.op != "call_function" or not is_grid(node, traced.image):
            continue
        if (
            node.target not in _HEAD_LIKE
            and not crossings(node, traced.logits, traced.image)
            and not _is_pooled(node, traced.image)
            and _trainable_after(traced, node)
        ):
            return node
    raise ModelError(
        "no value [B, N, h, w] with h * w > 1, followed by layers with parameters, leads alone "
        "to the logits; the model has no spatial features to explain, or its input is too small"
    )


def _is_pooled(node: fx.Node, image: fx.Node) -> bool:
    """Whether all of `node` comes out of a pooling to one value per channel.

    Such a value can look like a grid: ConvNeXt's [B, 1, 1, N], with the channels last.
    """
    pools = [n for n in ancestors(node) if n.target in _POOLS and not is_grid(n, image)]
    return any(not crossings(pool, node, image) for pool in pools)


def _trainable_after(traced: Traced, target: fx.Node) -> bool:
    lifted = [n for n in ancestors(traced.logits, stop=[target]) if n.name in traced.names]
    parameters = dict(traced.model.named_parameters())
    return any(traced.names[n.name] in parameters for n in lifted)


def _check_against_model(result: Split, example: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, *example.shape[1:])
    images = torch.randn(shape, generator=generator)
    parameter = next(result.traced.model.parameters(), images)
    images = images.to(parameter.device)
    head = module_of(unmarked(result.head), result.traced.tensor, "Head")
    with torch.no_grad():
        got, want = head(result.features(images)), result.traced.model(images)
    difference = (got - want).abs().max().item()
    # NaN weights give NaN on both sides; they are the export's and training's to report.
    if difference > 1e-3 * max(want.abs().max().item(), 1e-6):
        raise ModelError(
            f"the split model's logits differ from the model's by {difference:.3g}; "
            f"forward must be deterministic in inference mode and keep no state"
        )


def _name_of(graph: fx.Graph, node: fx.Node) -> str:
    """The outermost module whose last value is `node`, else "<module>:<operator>"."""
    last: dict[str, fx.Node] = {}
    for other in graph.nodes:
        for path in _stack(other):
            last[path] = other
    for path in _stack(node):
        if path and last[path] is node:
            return path
    return f"{_path(node) or _FORWARD}:{_operator(node)}"


def _stack(node: fx.Node) -> list[str]:
    return [
        str(path).partition("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values()
    ]


def _path(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _describe(node: fx.Node) -> str:
    text = f"{_path(node) or _FORWARD}:{_operator(node)} {_sizes(node.meta.get('val'))}"
    source = node
    while not _path(source) and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return text if _path(node) or not _path(source) else f"{text} out of {_path(source)}"


def _sizes(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    sizes = [str(s) if isinstance(s, int) else "B" for s in value.shape]
    return f"[{', '.join(sizes)}]"
