"""Records what autograd does in the backward pass from the logits to the target layers.

ONNX has no gradients. But for a fixed network the backward pass is itself a computation of
fixed operators: autograd runs once under `make_fx`, which records it, and the record is
cut in two (`partition`). Both parts are plain graphs, exported like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigcam.classifier.graph import ValueRecorder
from sigcam.core.errors import ExportError
from sigcam.export.backward.decompositions import DECOMPOSITIONS, untranslatable
from sigcam.export.backward.partition import Partition, partition
from sigcam.export.backward.simplify import prepare, simplify

WITHOUT_GRADIENTS = "use the method scorecam or eigencam, which take no gradients"
"""What helps where a backward pass can't be had, whatever the reason."""

_BATCH = 23
"""An example that no other size equals: a comparison that held would fix the batch size."""


def trace_gradient(
    tail: fx.GraphModule, trunk: nn.Module, targets: Sequence[str], entry_shape: Sequence[int]
) -> Partition:
    """Traces z = trunk(tail(x)) and its gradients with respect to values inside the tail.

    Everything is in inference mode. Only the batch size is symbolic.

    Args:
        tail: from the entry x to the value of the branch layer.
        trunk: from that value to z [B, D], of which the logits are linear functions.
        targets: names of nodes in the tail's graph, whose gradients are wanted.
        entry_shape: the shape of x without the batch.

    Returns:
        The forward and the backward part, as plain graphs.

    Raises:
        ExportError: an operator's gradient can't be traced or has no translation.

    Example:
        parts = trace_gradient(cut.tail, head.trunk, cut.nodes, cut.shape)
        z, value, *rest = parts.forward(entry)  # rest: the target values, then the saved values
        gradients = parts.backward(*rest[len(cut.nodes):], cotangent)
    """
    joint = _Joint(_prepared(tail), _prepared(trunk), targets).eval()
    module = _traced(joint, entry_shape)
    simplify(module)
    _merge_transposes(module.graph)
    left = untranslatable(module.graph)
    if left:
        raise ExportError(
            f"these operators between the target layer and the logits have no translation to "
            f"ONNX: {', '.join(left)}; {WITHOUT_GRADIENTS}"
        )
    return partition(module, len(targets))


def _traced(joint: _Joint, entry_shape: Sequence[int]) -> fx.GraphModule:
    """Records the joint pass, with a symbolic batch size and the tensors as attributes.

    Raises:
        ExportError: an operator's gradient can't be traced, or takes one batch size only.
    """
    tensors = {**dict(joint.named_parameters()), **dict(joint.named_buffers())}
    mode = FakeTensorMode(shape_env=ShapeEnv())
    static = {name: _fake(mode, value) for name, value in tensors.items()}
    x = _fake(mode, torch.empty(_BATCH, *entry_shape), dynamic=True)
    try:
        # Attention as matrix products and a softmax: the fused kernels have backward kernels
        # of their own, which no other backend has.
        with mode, sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autograd's notes don't concern the user
            # With Python's kernels: padding in C++, for one, fixes a symbolic batch.
            with enable_python_dispatcher():
                z = functional_call(joint, static, (x,))[0]
            cotangent = torch.empty(z.shape)
            traced = make_fx(
                lambda p, x, c: functional_call(joint, p, (x, c)),
                tracing_mode="real",
                decomposition_table=DECOMPOSITIONS,
                _allow_non_fake_inputs=True,
            )(static, x, cotangent)
    except (GuardOnDataDependentSymNode, PendingUnbackedSymbolNotFound) as exc:
        raise ExportError(
            f"between the target layer and the logits values are chosen by values (x[mask], "
            f"nonzero, .item()), so that their number is known only at run time, and their "
            f"gradient can't be traced; write it with torch.where or a product with the mask. "
            f"Where no image's values depend on another image, you can also {WITHOUT_GRADIENTS}"
        ) from exc
    except Exception as exc:  # whatever an arbitrary head raises
        reason = str(exc).strip().split("\n")[0]
        raise ExportError(
            f"the backward pass from the logits to the target layer can't be traced: "
            f"{type(exc).__name__}: {reason}; {WITHOUT_GRADIENTS}"
        ) from exc
    batch: object = x.shape[0]
    if not isinstance(batch, torch.SymInt) or batch.node.maybe_as_int() is not None:
        raise ExportError(
            f"an operator between the target layer and the logits only takes one batch size; "
            f"{WITHOUT_GRADIENTS}"
        )
    return _with_tensors(traced, tensors)


class _Joint(nn.Module):
    """Computes z, the branch layer's value, the targets' values, and the gradients of z . c."""

    def __init__(self, tail: fx.GraphModule, trunk: nn.Module, targets: Sequence[str]) -> None:
        super().__init__()
        self.tail, self.trunk, self.targets = tail, trunk, list(targets)

    def forward(self, x: Tensor, cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
        recorder = ValueRecorder(self.tail, set(self.targets))
        with torch.enable_grad():
            value: Any = recorder.run(x)
            z = self.trunk(value)
            found = [recorder.values[name] for name in self.targets]
            if cotangent is None:
                return (z,)
            gradients = torch.autograd.grad(z, found, cotangent)
        return (z, value, *found, *gradients)


def _prepared(module: Any) -> Any:
    """Copies a module, sharing its tensors, so that its graphs don't depend on strides."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(_prepared(part) for part in module))
    if not isinstance(module, fx.GraphModule):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, val_map={}))
    prepare(graph)
    return fx.GraphModule(module, graph)


def _fake(mode: FakeTensorMode, value: Tensor, *, dynamic: bool = False) -> Tensor:
    sizes = [DimDynamic.STATIC] * value.ndim
    if dynamic:
        sizes[0] = DimDynamic.DYNAMIC
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    fake: Tensor = mode.from_tensor(value.detach(), symbolic_context=context)
    return fake


def _with_tensors(traced: fx.GraphModule, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Turns the placeholders of parameters and buffers into attributes; x and c stay."""
    graph = traced.graph
    root: dict[str, Any] = {
        str(n.target): getattr(traced, str(n.target)) for n in graph.find_nodes(op="get_attr")
    }
    for node, (name, value) in zip(
        graph.find_nodes(op="placeholder"), tensors.items(), strict=False
    ):
        flat = name.replace(".", "_")
        while flat in root:
            flat += "_"
        # The graph's owner must have it before the graph may name it.
        if isinstance(value, nn.Parameter):
            traced.register_parameter(flat, value)
        else:
            traced.register_buffer(flat, value)
        with graph.inserting_before(node):
            new = graph.get_attr(flat)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        root[flat] = value
    return fx.GraphModule(root, graph, class_name="Joint")


def _merge_transposes(graph: fx.Graph) -> None:
    """Writes x @ t(W) as linear(x, W): one Gemm with W as it is stored, no transposed copy."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is aten.t.default and node.args[0].target is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])
        elif node.target in (aten.addmm.default, aten.mm.default) and not node.kwargs:
            *bias, x, weight = node.args
            if isinstance(weight, fx.Node) and weight.target is aten.t.default:
                node.target = aten.linear.default
                node.args = (x, weight.args[0], *bias)
    graph.eliminate_dead_code()
