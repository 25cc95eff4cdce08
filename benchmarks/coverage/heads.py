"""Says in words what kind of head a classifier has."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.layer_names import operator_name

_WORDS = {
    "conv2d": "conv", "convolution": "conv", "linear": "linear", "addmm": "linear", "mm": "linear",
    "batch_norm": "norm", "_native_batch_norm_legit_no_training": "norm", "layer_norm": "norm",
    "native_layer_norm": "norm", "group_norm": "norm", "native_group_norm": "norm",
    "rms_norm": "norm", "_fused_rms_norm": "norm", "linalg_vector_norm": "norm",
    "mean": "pool", "adaptive_avg_pool2d": "pool", "_adaptive_avg_pool2d": "pool",
    "adaptive_avg_pool1d": "pool", "avg_pool2d": "pool",
    "amax": "max pool", "max_pool2d": "max pool", "max_pool2d_with_indices": "max pool",
    "adaptive_max_pool2d": "max pool",
    "scaled_dot_product_attention": "attention", "softmax": "attention", "_softmax": "attention",
    "einsum": "attention",
    "relu": "act", "gelu": "act", "hardswish": "act", "silu": "act", "tanh": "act",
    "sigmoid": "act", "hardsigmoid": "act", "relu6": "act", "hardtanh": "act",
    "leaky_relu": "act", "elu": "act",
}  # fmt: skip


def head_in_words(dual: DualBranch) -> str:
    """The kind of a head, by its operators from the branch layer's value to the logits.

    "pool + linear", "conv + pool", "norm + pool + linear", "flatten + MLP", "class token +
    linear", "attention pool + linear", ...
    """
    graph = dual.softmax_head.neck.graph.nodes, dual.softmax_head.classifier.graph.nodes
    steps: list[str] = []
    for node in (n for part in graph for n in part if n.op == "call_function"):
        word = _word(node, dual.branch.layout.kind)
        if word and (not steps or steps[-1] != word):
            steps.append(word)
    if "attention" in steps:
        # What is around the attention belongs to it, up to the last linear layer.
        tail = ["linear"] if steps[-1] == "linear" else []
        first = steps.index("attention")
        front = ["class token"] if "class token" in steps[:first] else []
        return " + ".join([*front, "attention", *tail])
    if not {"pool", "max pool", "class token"} & set(steps):
        steps.insert(0, "flatten")
    text = " + ".join(steps)
    while "linear + act + linear" in text or "MLP + act + linear" in text:
        text = text.replace("linear + act + linear", "MLP").replace("MLP + act + linear", "MLP")
    return text


def _word(node: fx.Node, kind: str) -> str | None:
    name = operator_name(node)
    if name in ("select", "slice") and kind == "tokens":
        before, after = (_tokens(n) for n in (node.args[0], node))
        # One token of several: the class token. Several of them: only prefixes left out.
        return "class token" if before != after and after in (None, 1) else None
    return _WORDS.get(name)


def _tokens(node: Any) -> int | None:
    value = node.meta.get("val")
    return int(value.shape[1]) if isinstance(value, Tensor) and value.ndim == 3 else None
