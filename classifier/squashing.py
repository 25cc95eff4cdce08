"""Finds the logits of a model that ends in a softmax, a log-softmax or a sigmoid.

The search goes back from the output through what has one source: views, casts, dropouts,
clamps, slices, logarithms. Whether taking the function off is right isn't read off the
operators but tried: on random logits, the end of the model must give what the function gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from sigcam.classifier.graph import device_of, extract, input_free, module_of
from sigcam.classifier.layout import operator_name
from sigcam.core.errors import ModelError

Squashing = Literal["softmax", "log_softmax", "sigmoid"]
"""The function that a model applies to its logits."""

_aten = torch.ops.aten
_SOFTMAX: dict[Any, str] = {
    _aten.softmax.int: "softmax",
    _aten._softmax.default: "softmax",
    _aten.special_softmax.default: "softmax",
    _aten.log_softmax.int: "log_softmax",
    _aten._log_softmax.default: "log_softmax",
    _aten.special_log_softmax.default: "log_softmax",
}
_SIGMOID: dict[Any, str] = {
    _aten.sigmoid.default: "sigmoid",
    _aten.special_expit.default: "sigmoid",
    _aten.log_sigmoid.default: "logsigmoid",
    _aten.log_sigmoid_forward.default: "logsigmoid",
    _aten.hardsigmoid.default: "hardsigmoid",
}
_SQUASHING = _SOFTMAX | _SIGMOID

# What only moves or picks values: it is applied to the logits instead.
_MOVES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "slice", "select", "narrow", "index", "index_select", "flip", "roll",
    "expand", "movedim", "swapaxes",
}  # fmt: skip
# What computes on single values; taken off where it makes no difference, refused otherwise.
_VALUES = {
    "clone", "alias", "detach", "contiguous", "_to_copy", "to", "lift_fresh_copy", "mark", "clamp",
    "clamp_min", "clamp_max", "clip", "log", "log2", "log10", "log1p", "exp", "add", "sub", "rsub",
    "mul", "div", "neg", "pow", "sqrt", "square", "round", "nan_to_num", "relu", "hardtanh",
    "logit", "minimum", "maximum", "getitem",
}  # fmt: skip
_IDENTITIES = {"clone", "alias", "detach", "contiguous", "_to_copy", "to", "mark", "getitem"}
_NAMES: dict[tuple[bool, bool], Squashing] = {
    (False, False): "softmax",
    (False, True): "log_softmax",
    (True, False): "sigmoid",
    (True, True): "sigmoid",
}
_SPREAD = 4.0
_IMAGES = 3


class Unsquashed(NamedTuple):
    """Where a model's logits are.

    Attributes:
        logits: the node of the logits.
        squashing: the function of them that the model returns; None if it returns them.
        logarithm: whether the output is the logarithm of probabilities.
        precision: the coarsest type that the function and what follows it compute in.
        note: a line for the user that says what was taken off; None for nothing.
    """

    logits: fx.Node
    squashing: Squashing | None
    logarithm: bool
    precision: torch.dtype
    note: str | None


def unsquashed(
    output: fx.Node,
    image: fx.Node,
    lifted: Callable[[fx.Node], str | None],
    tensor: Callable[[str], Tensor],
) -> Unsquashed:
    """Finds the logits that a model's output is a function of.

    Args:
        output: the node of the output; the views after the function are added to its graph
            once more, for the logits.
        image: the placeholder of the images.
        lifted: gives the name of the tensor that a node stands for; None for other nodes.
        tensor: looks up a tensor by that name.

    Raises:
        ModelError: there is such a function, but no logits whose function the output is.

    Example:
        end = unsquashed(traced_output, image, lifted, tensor)
        end.squashing  # "softmax"
    """
    chain = _chain(output, image)
    places = [i for i, node in enumerate(chain) if node.target in _SQUASHING]
    if not places:
        return Unsquashed(_uncast(output, image), None, False, _coarsest([output]), None)
    for place in reversed(places):
        node = chain[place]
        source = _only_source(node, image)
        end = chain[:place]
        logits = _moved(source, end, image)
        precision = _coarsest([source, *chain[: place + 1]])
        log = _is_log(node, source, output, logits, image, lifted, tensor, precision)
        if log is None:
            continue
        if place != places[-1]:
            break  # the function of a function: what it is applied to are no logits
        squashing = _NAMES[node.target in _SIGMOID, log]
        name = "logsigmoid" if log and squashing == "sigmoid" else squashing
        note = f"the model ends in {name}; its logits before it are used"
        return Unsquashed(_uncast(logits, image), squashing, log, precision, note)
    raise ModelError(_refusal(chain, places))


def squashed_of(node: fx.Node, image: fx.Node) -> set[fx.Node]:
    """Returns the values whose softmax, log-softmax or sigmoid a value is.

    Args:
        node: the value.
        image: the placeholder of the images.

    Example:
        z in squashed_of(probabilities, image)
    """
    chain = _chain(node, image)
    places = [i for i, step in enumerate(chain) if step.target in _SQUASHING]
    return {_only_source(step, image) for step in chain[places[0] :]} if places else set()


def _refusal(chain: list[fx.Node], places: list[int]) -> str:
    squashed = [_SQUASHING[chain[place].target] for place in reversed(places)]
    wanted = f"return the logits from forward, without the {squashed[-1]}"
    if squashed[-1] == "hardsigmoid":
        return (
            f"the model ends in hardsigmoid, so its outputs are neither logits nor the "
            f"probabilities that a sigmoid gives; {wanted}"
        )
    if len(squashed) > 1:
        return (
            f"the model ends in {' and '.join(squashed)}, one after the other; return the logits "
            f"from forward, before the first of them"
        )
    after = [n for n in chain[: places[0]] if operator_name(n) not in _IDENTITIES]
    names = ", ".join(operator_name(n) for n in reversed(after))
    if after:
        return (
            f"the model ends in {squashed[0]} and then {names}, so that its outputs aren't the "
            f"{squashed[0]} of logits of their own; return the logits of all classes from forward, "
            f"without the {squashed[0]}"
        )
    return (
        f"the model ends in a {squashed[0]} that isn't taken over the classes of one image; "
        f"{wanted}"
    )


def _chain(output: fx.Node, image: fx.Node) -> list[fx.Node]:
    """Lists the nodes from the output back, as long as each is a plain function of one value."""
    chain, node = list[fx.Node](), output
    while node.op == "call_function" and (
        node.target in _SQUASHING or operator_name(node) in _MOVES | _VALUES
    ):
        sources = _sources(node, image)
        if len(sources) != 1:
            break
        chain.append(node)
        node = sources[0]
    return chain


def _sources(node: fx.Node, image: fx.Node) -> list[fx.Node]:
    """Returns the values that a node computes with and that depend on the images."""
    free = input_free(node.graph, image)
    return [
        n
        for n in node.all_input_nodes
        if n not in free and isinstance(n.meta.get("val"), Tensor | tuple | list)
    ]


def _only_source(node: fx.Node, image: fx.Node) -> fx.Node:
    (source,) = _sources(node, image)
    return source


def _moved(source: fx.Node, end: list[fx.Node], image: fx.Node) -> fx.Node:
    """Applies to the logits what the end of a model does to where values are, and no more.

    Args:
        source: the logits.
        end: the nodes after the function, the output first.
        image: the placeholder of the images.
    """
    value = source
    for node in reversed(end):
        if operator_name(node) not in _MOVES:
            continue
        replaced = {_only_source(node, image): value}
        with node.graph.inserting_after(node):
            value = node.graph.node_copy(node, _replacing(replaced))
    return value


def _replacing(replaced: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    return lambda node: replaced.get(node, node)


def _uncast(logits: fx.Node, image: fx.Node) -> fx.Node:
    """Goes before a cast to another precision, if that is all that was done to the logits."""
    while operator_name(logits) in ("_to_copy", "to"):
        source = _only_source(logits, image)
        if source.meta["val"].dtype != torch.float32:
            break
        logits = source
    return logits


def _coarsest(nodes: list[fx.Node]) -> torch.dtype:
    """Returns the floating type of fewest digits among the values of nodes."""
    types = [n.meta["val"].dtype for n in nodes if isinstance(n.meta["val"], Tensor)]
    return max(types, key=lambda dtype: torch.finfo(dtype).eps)


def _is_log(
    node: fx.Node,
    source: fx.Node,
    output: fx.Node,
    logits: fx.Node,
    image: fx.Node,
    lifted: Callable[[fx.Node], str | None],
    tensor: Callable[[str], Tensor],
    precision: torch.dtype,
) -> bool | None:
    """Returns whether the output is the logarithm of the function of the logits, on random ones.

    None if it is neither the function nor its logarithm.
    """
    value = source.meta["val"]
    generator = torch.Generator().manual_seed(0)
    shape = [size if isinstance(size, int) else _IMAGES for size in value.shape]
    sample = torch.randn(shape, generator=generator) * _SPREAD
    try:
        got, moved = (
            _run(module_of(extract(source, end, image, lifted, "logits"), tensor, "End"), sample)
            for end in (output, logits)
        )
    except (RuntimeError, IndexError, TypeError):  # fixed to another batch size, for one
        return None
    if got.shape != moved.shape:
        return None
    rows, moved = (value.double().reshape(len(value), -1) for value in (got, moved))
    probability = moved.sigmoid() if node.target in _SIGMOID else moved.softmax(1)
    if _same(rows, probability, precision):
        return False
    return True if _same(rows.exp(), probability, precision) else None


def _run(module: nn.Module, sample: Tensor) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else sample.device
    with torch.no_grad():
        result: Tensor = module(sample.to(device)).cpu()
    return result


def _same(got: Tensor, want: Tensor, precision: torch.dtype) -> bool:
    # A clamp or an added number against log(0) is as good as none.
    rtol = max(1e-3, torch.finfo(precision).eps)
    return torch.allclose(got, want, rtol=rtol, atol=1e-5)


def check_not_probabilities(logits: Tensor, head: nn.Module, value_shape: tuple[int, ...]) -> None:
    """Refuses outputs that look like probabilities although nothing squashing was found.

    Rows that sum to 1, or whose exponentials do, are no accident. That all values lie in [0, 1]
    may be one; so it is tried whether they stay there for random weights and features.

    Args:
        logits: [B, C] of some images.
        head: computes them from the branch layer's value.
        value_shape: the shape of that value, without the batch.

    Raises:
        ModelError: the outputs are probabilities or their logarithms.

    Example:
        >>> check_not_probabilities(torch.tensor([[0.2, 0.9]]), nn.Linear(4, 2), (4,))
    """
    seen = _probability_like(logits, head, value_shape)
    if seen is not None:
        raise ModelError(
            f"the model must return logits, its outputs look like probabilities: on "
            f"{len(logits)} random images {seen}, and no softmax or sigmoid at the end could be "
            f"taken off; return the logits from forward (of several networks, the mean of their "
            f"logits)"
        )


def _probability_like(logits: Tensor, head: nn.Module, shape: tuple[int, ...]) -> str | None:
    rows = logits.detach().double().cpu()
    low, high = rows.min().item(), rows.max().item()
    one = torch.ones(len(rows), dtype=torch.float64)
    if rows.shape[1] > 1 and high <= 1e-4 and torch.allclose(rows.exp().sum(1), one, atol=1e-4):
        return "the exponentials of each row sum to 1"
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        return None
    if rows.shape[1] > 1 and torch.allclose(rows.sum(1), one, atol=1e-4):
        return f"they lie between {low:.3g} and {high:.3g} and each row sums to 1"
    if _stays_bounded(head, shape):
        return f"they lie between {low:.3g} and {high:.3g}, as they do with random weights"
    return None


def _stays_bounded(head: nn.Module, shape: tuple[int, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    device = device_of(head)
    for _ in range(4):
        weights = {
            name: torch.randn(value.shape, generator=generator).to(device)
            * (2.0 / value[0].numel() ** 0.5)
            for name, value in head.named_parameters()
            if value.ndim > 1 and value.is_floating_point()
        }
        features = (torch.randn((_IMAGES, *shape), generator=generator) * 10).to(device)
        with torch.no_grad():
            rows = functional_call(head, weights, (features,))
        if not (rows.min().item() >= -1e-6 and rows.max().item() <= 1 + 1e-6):
            return False
    return True
