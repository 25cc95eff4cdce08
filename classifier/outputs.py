"""Finds the one tensor of logits in what a model returns: tuples, dictionaries and the like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from sigcam.classifier.graph import has_batch, sizes_of
from sigcam.classifier.squashing import squashed_of
from sigcam.core.errors import ModelError

_aten = torch.ops.aten
_LOGITS = "logits"


class Named(NamedTuple):
    """A tensor in what a model returns.

    Attributes:
        name: where it lies: "logits", "[0]", "heads.main[1]"; empty for the output itself.
        value: the tensor.
    """

    name: str
    value: Tensor


def tensors_in(output: object, name: str = "") -> list[Named]:
    """Lists the floating tensors in a model's output, each of them once.

    Args:
        output: a tensor, or tensors in tuples, lists, mappings, dataclasses and other objects
            with attributes, nested as they like.
        name: what the names begin with.

    Example:
        >>> [one.name for one in tensors_in({"logits": torch.zeros(1, 2), "all": (None, 3)})]
        ['logits']
        >>> [one.name for one in tensors_in((torch.zeros(1, 2), [torch.zeros(3)]))]
        ['[0]', '[1][0]']
    """
    found: list[Named] = []
    for one in _walked(output, name, depth=0):
        if all(one.value is not other.value for other in found):
            found.append(one)
    return found


def _walked(output: object, name: str, depth: int) -> list[Named]:
    if isinstance(output, Tensor):
        return [Named(name, output)] if output.is_floating_point() and output.ndim else []
    if depth > 4:  # what refers to itself would never end
        return []
    parts = _parts(output)
    return [one for key, part in parts for one in _walked(part, _joined(name, key), depth + 1)]


def _parts(output: object) -> list[tuple[str, object]]:
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, list | tuple):
        return [(f"[{index}]", value) for index, value in enumerate(output)]
    if dataclasses.is_dataclass(output):
        return [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    return list(getattr(output, "__dict__", {}).items())


def _joined(name: str, key: str) -> str:
    return f"{name}{key}" if key.startswith("[") or not name else f"{name}.{key}"


def chosen(outputs: Sequence[tuple[str, fx.Node]], image: fx.Node) -> int:
    """Returns which of a model's outputs are its logits.

    That is the one output of the form [B, C], [B, C, 1] or [B, C, 1, 1]; where there is none,
    the one with a single value per image, [B] or [B, 1]. Of several, the one whose name is
    "logits" is taken. Probabilities that lie beside their logits are no logits.

    Args:
        outputs: name and node of each floating tensor that the model returns.
        image: the placeholder of the images.

    Raises:
        ModelError: none has the form, or several have; lists them.
    """
    several = [i for i, (_, node) in enumerate(outputs) if (_classes(node, image) or 0) > 1]
    single = [i for i, (_, node) in enumerate(outputs) if _classes(node, image) == 1]
    candidates = _no_probabilities(several or single, outputs, image)
    called = [i for i in candidates if outputs[i][0].rpartition(".")[2] == _LOGITS]
    if len(candidates) == 1:
        return candidates[0]
    if len(called) == 1:
        return called[0]
    listed = ", ".join(f"{name} {sizes_of(node)}".strip() for name, node in outputs)
    if candidates:
        raise ModelError(
            f"the model must return one tensor of logits [B, C], several of its outputs have that "
            f"form: {listed}; wrap it in a module that returns the logits alone, or a dictionary "
            f"with the key 'logits'"
        )
    raise ModelError(
        f"the model must return logits [B, C], it returns {listed}; wrap it in a module that "
        f"returns the logits of B images"
    )


def _no_probabilities(
    candidates: Sequence[int], outputs: Sequence[tuple[str, fx.Node]], image: fx.Node
) -> list[int]:
    """Leaves out what is the softmax or sigmoid of another candidate."""
    nodes = {outputs[i][1] for i in candidates}
    return [i for i in candidates if not nodes & squashed_of(outputs[i][1], image)]


def as_matrix(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Brings logits into the form [B, C]; the others are [B], [B, C, 1] and [B, C, 1, 1].

    Args:
        graph: the graph, which gets a reshape where it is needed.
        node: the logits.

    Returns:
        The node of the logits [B, C], C = 1 for a single value per image.
    """
    value = node.meta["val"]
    if value.ndim == 2:
        return node
    classes = int(value.shape[1:].numel())
    with graph.inserting_after(node):
        flat = graph.call_function(_aten.reshape.default, (node, [-1, classes]))
    flat.meta = dict(node.meta)
    flat.meta["val"] = value.reshape(value.shape[0], classes)
    return flat


def _classes(node: fx.Node, image: fx.Node) -> int | None:
    """Returns C of a tensor that may be logits; None for others."""
    shape = node.meta["val"].shape
    if not has_batch(node, image) or not all(isinstance(s, int) for s in shape[1:]):
        return None
    if len(shape) == 1:
        return 1
    return int(shape[1]) if all(size == 1 for size in shape[2:]) else None
