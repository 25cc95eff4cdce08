"""Traces a classifier into one flat, side-effect-free graph, whose nodes know their modules.

A copy in inference mode goes through `torch.export` and is then functionalised: an in-place
`relu_` in the model can't reach across a later cut, and no hook stays anywhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export.graph_signature import InputKind
from torch.utils.hooks import RemovableHandle

from sigcam.classifier.fresh import computed_copy
from sigcam.classifier.graph import device_of, tensor_of
from sigcam.classifier.model_object import plain_model
from sigcam.classifier.outputs import as_matrix, chosen, tensors_in
from sigcam.classifier.squashing import Squashing, unsquashed
from sigcam.classifier.trace_failure import explained
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
        graph: images and lifted tensors in, outputs out; dropouts and the outputs of the
            named layers are `sigcam::mark` nodes.
        image: the placeholder of the images.
        logits: the node that gives the logits, [B, C].
        names: placeholder name to the original name of its parameter or buffer.
        constants: tensors that are neither, by the same names.
        output_name: where that lies in what the model returns (`tensors_in`).
        squashing: the function of the logits that the model returns; None for the logits.
        logarithm: whether it returns the logarithm of probabilities.
        precision: the coarsest type in which it computes that function.
        notes: a line for the user about each thing that isn't taken as the model gives it.
        one_logit: whether the model has one logit l, of which `logits` are [-l, l].
    """

    model: nn.Module
    graph: fx.Graph
    image: fx.Node
    logits: fx.Node
    names: dict[str, str]
    constants: dict[str, Tensor]
    output_name: str
    squashing: Squashing | None
    logarithm: bool
    precision: torch.dtype
    notes: tuple[str, ...]
    one_logit: bool = False

    def original(self, images: Tensor) -> Tensor:
        """Returns what the model itself gives, and not the graph, to compare with `squashed`.

        Args:
            images: float32 [B, 3, H, W], on the model's device.

        Returns:
            [B, C]: logits, or probabilities where a function was taken off.
        """
        found = {one.name: one.value for one in tensors_in(self.model(images))}
        rows = found[self.output_name].reshape(len(images), -1)
        return rows.exp() if self.logarithm else rows

    def squashed(self, logits: Tensor) -> Tensor:
        """Computes what `original` returns for given logits.

        Args:
            logits: [B, C], before the function that was taken off.

        Returns:
            [B, C], or [B, 1] for one logit: probabilities; the logits themselves where nothing
            was taken off.
        """
        logits = logits[:, 1:] if self.one_logit else logits
        if self.squashing is None:
            return logits
        logits = logits.to(self.precision)
        return logits.sigmoid() if self.squashing == "sigmoid" else logits.softmax(1)

    def tensor(self, name: str) -> Tensor:
        """Returns the parameter, buffer or constant of an original name."""
        return self.constants[name] if name in self.constants else tensor_of(self.model)(name)


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
        ('images', ['0.bias', '0.weight', '3.bias', '3.weight'])
    """
    frozen = _frozen_copy(plain_model(model))
    images = example[:1].detach().to(device_of(frozen)).repeat(2, 1, 1, 1)
    adapter = _Adapter(frozen)
    with _marked(frozen, layers):
        program = _export(adapter, images)
    _refuse_control_flow(program)
    program = _functional(program)
    graph = program.graph_module.graph
    _forget_adapter(graph)
    names, constants, image = _inputs(program)
    user_outputs = dict(zip(adapter.seen.names, program.graph_signature.user_outputs, strict=True))
    nodes = {node.name: node for node in graph.nodes}
    outputs = [(name, nodes[node]) for name, node in user_outputs.items()]
    name, output = outputs[chosen(outputs, image)]
    notes = (
        [f"the output {name} of the model's {adapter.seen.kind} is taken as its logits"]
        if name
        else []
    )

    def tensor(name: str) -> Tensor:
        return constants[name] if name in constants else tensor_of(frozen)(name)

    end = unsquashed(output, image, lambda node: names.get(node.name), tensor)
    notes += [end.note] if end.note else []
    logits = as_matrix(graph, end.logits)
    return Traced(
        frozen, graph, image, logits, names, constants, name, end.squashing, end.logarithm,
        end.precision, tuple(notes),
    )  # fmt: skip


@dataclass
class _Seen:
    """What a model returned while it was traced.

    Attributes:
        names: where each tensor lies in the output.
        kind: the output's type, for people.
    """

    names: tuple[str, ...] = ()
    kind: str = ""


class _Adapter(nn.Module):
    """Calls a model with images alone, and returns the tensors in whatever that returns.

    torch.export can neither return objects that it doesn't know nor give `*args` a batch.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # In an object: attributes that are set during an export are put back after it.
        self.seen = _Seen()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images)
        found = tensors_in(output)
        self.seen.kind = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        if not found:
            raise ModelError(
                f"the model must return floating logits [B, C], it returns {self.seen.kind} and no "
                f"such tensor; wrap it in a module that returns the logits"
            )
        self.seen.names = tuple(one.name for one in found)
        return tuple(one.value for one in found)


_ADAPTED = "model"


def _forget_adapter(graph: fx.Graph) -> None:
    """Gives the nodes' modules the names that they have in the model."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (path.removeprefix(_ADAPTED).removeprefix("."), kind)
                for key, (path, kind) in stack.items()
                if path
            }


def _inputs(
    program: torch.export.ExportedProgram,
) -> tuple[dict[str, str], dict[str, Tensor], fx.Node]:
    """Returns names and constants as `Traced` has them, and the placeholder of the images."""
    names, constants, image = dict[str, str](), dict[str, Tensor](), None
    placeholders = {n.name: n for n in program.graph.find_nodes(op="placeholder")}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            image = placeholders.get(getattr(spec.arg, "name", ""))
            continue
        target = spec.target or spec.arg.name
        name = target.removeprefix(f"{_ADAPTED}.")
        names[spec.arg.name] = name
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            constants[name] = program.constants[target]
    if image is None:
        raise ModelError("the model doesn't take an image tensor; it must map images to logits")
    return names, constants, image


@contextlib.contextmanager
def _marked(model: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Marks the outputs of layers while the model is traced."""
    runs = Counter[str]()
    # A trace may begin anew; its runs are counted from one again.
    hooks: list[RemovableHandle] = [model.register_forward_pre_hook(lambda *_: runs.clear())]
    hooks += [
        model.get_submodule(layer).register_forward_hook(_mark_output(layer, runs))
        for layer in sorted(set(layers))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
    wrong = [n for n, p in model.named_parameters() if p.dtype != torch.float32]
    if wrong:
        raise ModelError(
            f"the model's parameters must be float32, {wrong[0]} is "
            f"{model.get_parameter(wrong[0]).dtype}; convert the model with .float()"
        )
    try:
        copied = computed_copy(model)
    except Exception as exc:  # whatever a model's own code raises
        raise ModelError(
            f"the model can't be copied with copy.deepcopy: {exc}; keep in its attributes only "
            f"what can be copied"
        ) from exc
    return copied.eval().requires_grad_(False)


def _mark_output(name: str, runs: Counter[str]) -> Any:
    """Returns a hook that marks what a module returns, with the number of its run."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        del inputs
        runs[name] += 1
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the layer {name!r} must return one tensor with a grid, it returns "
                f"{type(output).__name__}; name a layer "
                + ("inside it" if next(module.children(), None) is not None else "before it")
            )
        marked: Tensor = MARK(output, LAYER + name, float(runs[name]))
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
        with _quiet():
            error = explained(model.get_submodule(_ADAPTED), images, exc)
        raise error from exc


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
        elif node.target is _aten.squeeze.default:
            # Without this, the batch's own axis would go for a batch of one.
            ones = [
                i
                for i, s in enumerate(node.args[0].meta["val"].shape)
                if isinstance(s, int) and s == 1
            ]
            node.target, node.args = _aten.squeeze.dims, (node.args[0], ones)
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
