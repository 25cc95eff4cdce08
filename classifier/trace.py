"""Traces a classifier into one flat, side-effect-free graph, whose nodes know their modules.

A copy in inference mode goes through `torch.export` and is then functionalised: an in-place
`relu_` in the model can't reach across a later cut, and no hook stays anywhere.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export.graph_signature import InputKind

from sigcam.core.errors import ModelError

LAYER = "layer:"
"""The kind of a mark that names a layer begins so."""


def _clone(x: Tensor, kind: str, amount: float) -> Tensor:
    del kind, amount
    return x.clone()


def _like(x: Tensor, kind: str, amount: float) -> Tensor:
    del kind, amount
    return torch.empty_like(x)


# An identity that survives export and functionalisation: it marks the outputs of
# named layers, and the places of the dropouts that inference mode would drop.
_mark = torch.library.custom_op(
    "sigcam::mark",
    _clone,
    mutates_args=(),
    schema="(Tensor x, str kind, float amount) -> Tensor",
)
_mark.register_fake(_like)
MARK = torch.ops.sigcam.mark.default

_CONTROL_FLOW = {"cond", "while_loop", "map", "map_impl", "scan", "associative_scan"}

_aten = torch.ops.aten
DROPOUTS = {
    _aten.dropout.default: "dropout",
    _aten.dropout_.default: "dropout",
    _aten.feature_dropout.default: "feature_dropout",
    _aten.feature_dropout_.default: "feature_dropout",
    _aten.alpha_dropout.default: "alpha_dropout",
    _aten.alpha_dropout_.default: "alpha_dropout",
    _aten.feature_alpha_dropout.default: "feature_alpha_dropout",
    _aten.feature_alpha_dropout_.default: "feature_alpha_dropout",
}


@dataclass(frozen=True)
class Traced:
    """A classifier as one flat graph.

    Attributes:
        model: the copy that was traced; it owns the tensors.
        graph: images and lifted tensors in, logits out; dropouts and the outputs of the
            named layers are `sigcam::mark` nodes.
        image: the placeholder of the images.
        logits: the node that gives the logits, [B, C].
        names: placeholder name to the original name of its parameter or buffer.
        constants: tensors that are neither, by the same names.
    """

    model: nn.Module
    graph: fx.Graph
    image: fx.Node
    logits: fx.Node
    names: dict[str, str]
    constants: dict[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """Returns the parameter, buffer or constant of an original name."""
        if name in self.constants:
            return self.constants[name]
        path, _, attribute = name.rpartition(".")
        found: Tensor = getattr(self.model.get_submodule(path), attribute)
        return found


def trace(model: nn.Module, example: Tensor, layers: Iterable[str] = ()) -> Traced:
    """Traces a copy of `model` in inference mode with a dynamic batch.

    Args:
        model: a classifier, images [B, 3, H, W] to logits [B, C]; it isn't changed.
        example: images float32 [B, 3, H, W]; only the shape and type matter.
        layers: the names of modules whose outputs are marked.

    Raises:
        ModelError: the model can't be copied or exported, or doesn't return logits.

    Example:
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> traced.image.name, sorted(traced.names.values())
        ('input', ['0.bias', '0.weight', '3.bias', '3.weight'])
    """
    frozen = _frozen_copy(model)
    for layer in sorted(set(layers)):
        # On the copy, which is dropped after the trace.
        frozen.get_submodule(layer).register_forward_hook(_mark_output(layer))
    device = next((p.device for p in frozen.parameters()), torch.device("cpu"))
    images = example[:1].detach().to(device).repeat(2, 1, 1, 1)
    program = _export(frozen, images)
    _refuse_control_flow(program)
    program = _functional(program)
    signature = program.graph_signature
    graph = program.graph_module.graph
    names, constants, image = {}, {}, None
    placeholders = {node.name: node for node in graph.find_nodes(op="placeholder")}
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            image = placeholders.get(getattr(spec.arg, "name", ""))
            continue
        name = spec.target or spec.arg.name
        names[spec.arg.name] = name
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            constants[name] = program.constants[name]
    if image is None:
        raise ModelError("the model doesn't take an image tensor; it must map images to logits")
    return Traced(frozen, graph, image, _logits(graph, signature.user_outputs), names, constants)


def _refuse_control_flow(program: torch.export.ExportedProgram) -> None:
    found = sorted(
        {str(n.target) for n in program.graph.nodes if isinstance(n.target, HigherOrderOperator)}
        & _CONTROL_FLOW
    )
    if found:
        raise ModelError(
            f"the model must be one fixed computation, it has control flow "
            f"({', '.join(found)}); export a model without it"
        )


def _frozen_copy(model: nn.Module) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model must be a plain nn.Module, it is a TorchScript module; give the module "
            "that it was scripted from"
        )
    wrong = [n for n, p in model.named_parameters() if p.dtype != torch.float32]
    if wrong:
        raise ModelError(
            f"the model's parameters must be float32, {wrong[0]} is "
            f"{model.get_parameter(wrong[0]).dtype}; convert the model with .float()"
        )
    try:
        copied = copy.deepcopy(model)
    except Exception as exc:  # whatever a model's own code raises
        raise ModelError(f"the model can't be copied with copy.deepcopy: {exc}") from exc
    return copied.eval().requires_grad_(False)


def _mark_output(name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        del module, inputs
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the layer {name!r} must return one tensor with a grid, it returns "
                f"{type(output).__name__}; name a layer inside it"
            )
        marked: Tensor = MARK(output, LAYER + name, 0.0)
        return marked

    return hook


def _export(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), _quiet():
            program: torch.export.ExportedProgram = torch.export.export(
                model,
                (images,),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                strict=False,
            )
            return program
    except ModelError:
        raise
    except Exception as exc:  # torch.export lets through what the model raises
        reason = str(exc).strip().split("\n")[0]
        raise ModelError(
            f"the model can't be exported for images {list(images.shape)} with any batch size: "
            f"forward must not choose its way by tensor values or by the batch size, and the "
            f"image size must fit the model ({type(exc).__name__}: {reason})"
        ) from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the terminal what torch.export prints of a model that it refuses.

    A model's own deprecations don't concern the user either.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    for node in program.graph.nodes:
        if node.target in DROPOUTS:
            x, amount = node.args[0], float(node.args[1])
            node.args, node.kwargs = (x, DROPOUTS[node.target], amount), {}
            node.target = MARK
    program.graph_module.recompile()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: torch.export.ExportedProgram = program.run_decompositions({})
    for node in list(result.graph.nodes):
        if node.target is _aten.view.default:
            # A view is right only for the strides that it was recorded with; operators'
            # kernels (attention's, for one) differ in those by device and type.
            node.target = _aten.reshape.default
        elif node.target is _aten.copy.default:
            _plain_copy(node)
    result.graph_module.recompile()
    return result


def _plain_copy(node: fx.Node) -> None:
    """Replaces `copy(x, y)`, what `x[...] = y` leaves: it has no derivative; y in x's form has."""
    _, source = node.args[:2]
    graph, value = node.graph, node.meta["val"]
    sizes = [int(s) if isinstance(s, int) else -1 for s in value.shape]
    known = source.meta["val"] if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node) or known is None or known.dtype != value.dtype:
        return
    if [str(s) for s in known.shape] == [str(s) for s in value.shape]:
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    elif isinstance(known.shape[0] if known.ndim == value.ndim else None, torch.SymInt):
        node.target, node.args = _aten.expand.default, (source, sizes)


def _logits(graph: fx.Graph, outputs: Any) -> fx.Node:
    nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
    if len(outputs) != 1 or outputs[0] not in nodes:
        raise ModelError(
            f"the model must return one tensor of logits [B, C], it returns {len(outputs)} "
            f"values; wrap it in a module that returns the logits alone"
        )
    node = nodes[outputs[0]]
    value = node.meta["val"]
    if not isinstance(value, Tensor) or value.ndim != 2 or not isinstance(value.shape[1], int):
        shape = list(value.shape) if isinstance(value, Tensor) else value
        raise ModelError(f"the model must return logits [B, C], it returns {shape}")
    if node.target in (_aten.softmax.int, _aten._softmax.default):
        raise ModelError("the model must return logits, it returns probabilities (softmax)")
    return node
