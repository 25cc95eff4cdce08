"""Runs a graph again with another value in place of one that it computed."""

from __future__ import annotations

import torch
from torch import Tensor, fx


class Replay(fx.Interpreter):
    """Runs what follows from one value of a graph, with all else as it was.

    Example:
        >>> module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sigmoid()))
        >>> replay = Replay(module, "_0", torch.tensor([1.0]))
        >>> replay.of(torch.tensor([0.0]))
        tensor([0.5000])
    """

    def __init__(self, module: fx.GraphModule, name: str, images: Tensor) -> None:
        """Runs the graph once, and keeps what the rest needs beside the value.

        Args:
            module: the graph.
            name: the name of the node whose value is replaced later.
            images: the graph's input.
        """
        super().__init__(module)
        self._images = images
        self._after: set[str] = set()
        needed: set[str] = set()
        for node in module.graph.nodes:
            sources = {source.name for source in node.all_input_nodes}
            if sources & (self._after | {name}):
                self._after.add(node.name)
                needed |= sources
        self._name, self._needed = name, needed - self._after
        self._kept: dict[str, object] = {}
        self._given: Tensor | None = None
        with torch.no_grad():
            self.run(images)

    @property
    def value(self) -> Tensor:
        """Returns the value as the graph computed it."""
        value = self._kept[self._name]
        assert isinstance(value, Tensor)  # noqa: S101 (a layer's value)
        return value

    def of(self, value: Tensor) -> Tensor:
        """Returns the graph's output for another value.

        Args:
            value: in the shape of `value`.
        """
        with torch.no_grad():
            return self.differentiable(value)

    def differentiable(self, value: Tensor) -> Tensor:
        """Returns the same, recorded for a gradient with respect to the value.

        Args:
            value: in the shape of `value`.
        """
        self._given = value
        output: Tensor = self.run(self._images)
        return output

    def run_node(self, n: fx.Node) -> object:
        """Computes a node the first time, and later those that follow from the value."""
        if self._given is None:
            result = super().run_node(n)
            if n.name in self._needed or n.name == self._name:
                self._kept[n.name] = result
            return result
        if n.name == self._name:
            return self._given
        if n.name in self._after or n.op == "output":
            return super().run_node(n)
        return self._kept.get(n.name)
