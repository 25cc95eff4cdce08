"""Makes heads: the part of a classifier from the branch layer to the logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from sigcam.classifier.fresh import Init, drawn, owner_of
from sigcam.classifier.graph import (
    crossings,
    device_of,
    extract,
    has_batch,
    module_of,
)
from sigcam.classifier.last_layer import last_layer
from sigcam.classifier.layout import Layout
from sigcam.classifier.one_logit import one_logit, two_logits
from sigcam.classifier.split import Split, unmarked
from sigcam.classifier.trace import MARK, Traced
from sigcam.core.errors import BranchMismatchError, ModelError

_REDRAWN = 8


class LiveDropout(nn.Module):
    """A dropout of the original model: active in training mode only.

    Example:
        >>> dropout = LiveDropout("dropout", 0.5)
        >>> dropout.eval()(torch.ones(3))
        tensor([1., 1., 1.])
        >>> dropout
        LiveDropout(dropout, p=0.5)
    """

    def __init__(self, kind: str, amount: float) -> None:
        """Keeps what the original dropout was.

        Args:
            kind: "dropout", "feature_dropout", "alpha_dropout" or "feature_alpha_dropout".
            amount: the probability that a value is dropped.
        """
        super().__init__()
        self.kind, self.amount = kind, amount

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`, of any shape, with values dropped in training mode."""
        if not self.training:
            return x
        dropped: Tensor = getattr(torch, self.kind)(x, self.amount, True)
        return dropped

    def extra_repr(self) -> str:
        """Returns what `print` shows."""
        return f"{self.kind}, p={self.amount}"


class Head(nn.Module):
    """Computes logits [B, C] from the value of the branch layer (F [B, N, h, w], mostly).

    Attributes:
        neck: F to the neck's output. It has neither parameters nor dropout, so its output
            can be cached for training (pooled features [B, N], for most networks).
        classifier: the neck's output to logits [B, C]; it holds every parameter.
        neck_shape: the shape of the neck's output for one image, without the batch.

    Example:
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> head = DualBranch(nn.Sequential(*layers), input_size=8).softmax_head
        >>> head.neck_shape, sorted(head.named_tensors())
        ((4,), ['3.bias', '3.weight'])
        >>> weight, bias = head.linear_weights()
        >>> weight.shape
        torch.Size([2, 4])
    """

    def __init__(self, split: Split, *, live_dropout: bool) -> None:
        """Makes the head of a split, with the original tensors themselves.

        Args:
            split: the classifier cut in two, of which this is the second part.
            live_dropout: whether the dropouts act in training mode; else they are left
                out of the graph.
        """
        super().__init__()
        self._split = split
        graph = split.head if live_dropout else unmarked(split.head)
        pooled = _neck_output(graph)
        features = next(iter(graph.nodes))
        neck = _between(features, pooled, "features")
        self.neck = module_of(neck, split.traced.tensor, "Neck")
        classifier = _between(pooled, _output(graph), "pooled")
        self.classifier = _with_dropout(classifier, split)
        self.neck_shape: tuple[int, ...] = tuple(int(s) for s in pooled.meta["val"].shape[1:])
        self._linear: tuple[str, str | None] | None = None

    @property
    def traced(self) -> Traced:
        """Returns the whole classifier that this is the head of."""
        return self._split.traced

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits [B, C] for the branch layer's value, float."""
        logits: Tensor = self.classifier(self.neck(features))
        return logits

    def named_tensors(self) -> dict[str, Tensor]:
        """Returns parameters and persistent buffers by the original model's names.

        They are the head's own tensors, not copies; detached.
        """
        return {name: value.detach() for name, value in self.classifier.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values into the head.

        Args:
            tensors: by the names of `named_tensors`, of the same shapes. Floating tensors may
                be of any floating dtype (float16 is widened).

        Raises:
            BranchMismatchError: names or shapes are not this head's.
            ModelError: a value is not finite.
        """
        own = self.named_tensors()
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or extra:
            raise BranchMismatchError(
                f"the tensors must be those of this head, {sorted(own)}; "
                f"missing {missing}, unknown {extra}"
            )
        for name, value in own.items():
            if tensors[name].shape != value.shape:
                raise BranchMismatchError(
                    f"{name} must be {list(value.shape)}, got {list(tensors[name].shape)}; "
                    f"the branch was made for another head or number of classes"
                )
            if not torch.isfinite(tensors[name]).all():
                raise ModelError(f"{name} has values that are not finite; train the branch again")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    def fresh_copy(self, seed: int) -> Head:
        """Makes a head of the same graph with fresh parameters (`draw`) and live dropout.

        Args:
            seed: the seed of the fresh parameters.

        Raises:
            ModelError: fresh parameters make no difference.
        """
        new = Head(self._split, live_dropout=True)
        device = device_of(self)
        # The originals are shared with the frozen head until here.
        new.classifier = copy.deepcopy(new.classifier)
        new.draw(seed)
        new.to(device)._check_fresh(self, seed)
        return new.train().requires_grad_(True)

    def draw(self, seed: int, init: Init = "default") -> None:
        """Draws every parameter anew, in place.

        Buffers keep their values, but for those that belong to a weight (of `spectral_norm`).
        A weight that is computed from others (`weight_norm`) is drawn itself, and they follow.

        "default": by `reset_parameters` of a copy of the layer that owns the parameter, as
        torch initialises that layer (Kaiming or Xavier). Where that layer has no such method,
        from the normal distribution with the mean and deviation that the original's values
        have.

        "paper": "Beyond Softmax" names PyTorch's defaults, Kaiming or Xavier for weights and a
        truncated normal for biases, and gives no numbers; these are ours. Weights of
        convolutions are Kaiming uniform (fan in, a = sqrt(5), as torch has them), those of
        linear layers Xavier uniform, and the biases of both come from a normal distribution of
        mean 0 and deviation 0.02 that is cut off at two deviations. Other layers are drawn as
        by default.

        Args:
            seed: the seed of the fresh parameters; the global random state is left as it was.
            init: which of the two.

        Raises:
            ModelError: another `init`.
        """
        if init == "softmax":
            raise ModelError("parameters that begin as the softmax branch's aren't drawn")
        tensors = self.named_tensors()
        owners = sorted({owner_of(name) for name, _ in self.classifier.named_parameters()})
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for owner in owners:
                for name, value in drawn(self._split.traced.model, owner, init).items():
                    if name in tensors:
                        tensors[name].copy_(value)

    def parameter_counts(self) -> dict[str, int]:
        """Returns how many parameters each of the model's layers has in this head.

        Example:
            >>> from sigcam.classifier.dual_branch import DualBranch
            >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
            >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
            >>> dual.sigmoid_head.parameter_counts()
            {'3': 10}
        """
        counts: dict[str, int] = {}
        for name, value in self.classifier.named_parameters():
            owner = owner_of(name)
            counts[owner] = counts.get(owner, 0) + value.numel()
        return counts

    def _check_fresh(self, other: Head, seed: int) -> None:
        """Refuses fresh parameters that make no difference: the weights lie elsewhere.

        For each class, the two heads' logits are correlated over random inputs. A few channels
        correlate by accident, but not at every seed.
        """
        mine, original = self.eval(), self.classifier_of(other)
        if not self.parameter_counts():  # the branches begin at the logits: none to train
            return
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn((8, *self.neck_shape), generator=generator).to(device_of(self))
        with torch.no_grad():
            want = original(inputs)
            if not _correlated(mine.classifier(inputs), want):
                return
            for further in range(1, _REDRAWN):
                mine.draw(seed + further)
                if not _correlated(mine.classifier(inputs), want):
                    mine.draw(seed)
                    return
        buffers = [n for n, b in self.classifier.named_buffers() if b.is_floating_point()]
        raise ModelError(
            f"the sigmoid branch would compute what the softmax branch does, whatever its fresh "
            f"parameters {sorted(self.parameter_counts())} are: the weights lie in buffers "
            f"({', '.join(buffers) or 'none'}) or constants; make them parameters, or name an "
            f"earlier branch layer"
        )

    def start_from(self, other: Head, *, centred: bool = True) -> None:
        """Takes over another head's parameters, less what is common to all classes.

        Of a last linear layer the mean over the classes is taken off rows and biases, so that a
        shift of the other head's weights that no softmax notices (`ScoreHead.centred`) makes no
        difference here either. A head that ends in something else is taken as it is, and so is
        one whose logits are for sigmoids, which do notice.

        Args:
            other: a head of the same split, usually the softmax branch's.
            centred: whether the mean is taken off; not of logits that are for sigmoids.
        """
        last = last_layer(self.classifier.graph) if centred else None
        with torch.no_grad():
            values = other.named_tensors()
            for name, parameter in self.named_tensors().items():
                parameter.copy_(values[name])
                if last is not None and not last.negated and name in (last.weight, last.bias):
                    parameter.sub_(parameter.double().mean(0).to(parameter.dtype))

    def classifier_of(self, other: Head) -> nn.Module:
        """Returns what `other` computes of this head's neck output.

        The necks of the two branches may differ: a dropout that acts in training ends the neck
        before it, one that was left out doesn't.

        Args:
            other: a head of the same split, whose tensors are shared and not copied.

        Returns:
            Neck output [B, *neck_shape] of this head to logits [B, C] of the other one; frozen
            and in inference mode, on the other head's device.
        """
        made = Head(self._split, live_dropout=True).classifier
        made.load_state_dict(other.classifier.state_dict(), assign=True)
        return made.to(device_of(other)).requires_grad_(False).eval()

    def linear_weights(self) -> tuple[Tensor, Tensor]:
        """Returns W [C, N] and b [C] of a head that is global average pooling and a linear layer.

        The average goes over the positions of the branch layer's grid. That is decided by
        what the head computes: `W mean(F) + b` must equal the head on random features and
        random weights in float64, at batches of 1 and 3. A 1x1 convolution before the
        pooling qualifies too. The tensors are views of the head's own, detached; zeros for
        a missing bias. A head that makes [-l, l] of one logit has the rows [-W, W], in new
        tensors.

        Raises:
            ModelError: the head computes something else; says what it contains.
        """
        if self._linear is None:
            self._linear = _find_linear(self, self._split)
        tensors = self.named_tensors()
        weight, bias = self._linear
        matrix = tensors[weight].flatten(1)
        values = matrix.new_zeros(len(matrix)) if bias is None else tensors[bias]
        if one_logit(self.classifier.graph) is not None:
            return torch.cat([-matrix, matrix]), torch.cat([-values, values])
        return matrix, values


def _output(graph: fx.Graph) -> fx.Node:
    result = graph.output_node().args[0]
    assert isinstance(result, fx.Node)  # noqa: S101 (the split makes it so)
    return result


def _neck_output(graph: fx.Graph) -> fx.Node:
    """Returns the last value computed from the input alone that everything later comes from."""
    nodes = list(graph.nodes)
    source, end = nodes[0], _output(graph)
    plain = {source}
    found: fx.Node = source
    for node in nodes[1:]:
        if node.op != "call_function" or node.target is MARK:
            continue
        if not all(argument in plain for argument in node.all_input_nodes):
            continue
        plain.add(node)
        # With a row per image: what is cached, and where the batch size is read later.
        whole = isinstance(node.meta.get("val"), Tensor) and has_batch(node, source)
        if whole and node is not end and not crossings(node, end, source):
            found = node
    return found


def _between(start: fx.Node, end: fx.Node, name: str) -> fx.Graph:
    batch = next(iter(start.graph.nodes))
    return extract(start, end, batch, lambda n: str(n.target) if n.op == "get_attr" else None, name)


def _with_dropout(graph: fx.Graph, split: Split) -> fx.GraphModule:
    """Makes a module of a graph whose dropout marks became layers; other marks go."""
    layers: dict[str, LiveDropout] = {}
    for node in graph.find_nodes(op="call_function", target=MARK):
        source, kind, amount = node.args
        if kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
            name = f"dropout_{len(layers)}"
            layers[name] = LiveDropout(str(kind), float(amount))
            with graph.inserting_after(node):
                live = graph.call_module(name, (source,))
            live.meta = dict(node.meta)
            node.replace_all_uses_with(live)
        else:
            node.replace_all_uses_with(source)
        graph.erase_node(node)
    return module_of(graph, split.traced.tensor, "Classifier", layers)


def _correlated(mine: Tensor, original: Tensor) -> bool:
    """Returns whether all classes' logits [n, C] of two heads go up and down together."""
    rows = torch.stack([mine, original]).double()
    rows = rows - rows.mean(1, keepdim=True)
    scale = rows.norm(dim=1)
    alike = (rows[0] * rows[1]).sum(0) / (scale[0] * scale[1])
    # Classes that are 0 / 0 are constant, and say nothing.
    alike = alike[torch.isfinite(alike)]
    return len(alike) > 0 and bool((alike > 0.9).all())


def _find_linear(head: Head, split: Split) -> tuple[str, str | None]:
    """Returns the names of weight and bias of a head that is pooling and a linear layer."""
    names = {name: value.shape for name, value in head.named_tensors().items()}
    layout = split.branch.layout
    N = layout.shape[0] if layout is not None else None
    rows = split.num_classes if one_logit(head.classifier.graph) is None else 1
    weights = [n for n, s in names.items() if s in ((rows, N), (rows, N, 1, 1))]
    biases = [n for n, s in names.items() if s == (rows,)]
    if layout is not None and len(weights) == 1 and len(biases) == len(names) - 1 <= 1:
        weight, bias = weights[0], biases[0] if biases else None
        if _computes_linear(head, layout, weight, bias):
            return weight, bias
    operators = [
        str(n.target).removesuffix(".default")
        for n in split.head.nodes
        if n.op == "call_function" and n.target is not MARK
    ]
    raise ModelError(
        f"the head must be global average pooling and one linear layer; it contains "
        f"{', '.join(operators)} with the tensors {', '.join(names) or 'none'}; "
        f"use a method other than cam"
    )


def _computes_linear(head: Head, layout: Layout, weight: str, bias: str | None) -> bool:
    """Compares the head with its formula on random weights: zeros in the real ones mislead.

    Small values and large ones are tried, whose means differ from 0 on both sides: a head may
    clamp, or choose its way, at values that are seldom met.
    """
    tensors = head.named_tensors()
    generator = torch.Generator().manual_seed(0)
    device = tensors[weight].device
    random = {
        f"classifier.{name}": torch.randn(value.shape, generator=generator, dtype=torch.float64).to(
            device
        )
        for name, value in tensors.items()
    }
    matrix = random[f"classifier.{weight}"].flatten(1)
    negated = one_logit(head.classifier.graph) is not None
    training = head.training
    head.eval()
    try:
        with torch.no_grad():
            for batch, scale in ((1, 1.0), (3, 1e-3), (3, 1.0), (3, 1e2), (3, 1e4)):
                shape = (batch, *layout.value_shape)
                value = torch.randn(shape, generator=generator, dtype=torch.float64)
                means = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64)[:batch]
                value = ((value + means.reshape(-1, *[1] * len(shape[1:]))) * scale).to(device)
                got = functional_call(head, random, (value,))
                want = layout.to_grid(value).mean((2, 3)) @ matrix.T
                want = want if bias is None else want + random[f"classifier.{bias}"]
                want = two_logits(want) if negated else want
                if not torch.allclose(got, want, rtol=1e-9, atol=1e-9 * scale):
                    return False
    except RuntimeError:  # an operator that only takes float32 is no linear head
        return False
    finally:
        head.train(training)
    return True
