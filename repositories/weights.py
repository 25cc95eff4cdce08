"""A graph in which layers of several kinds share no weights, for servers that run OpenVINO.

OpenVINO's CPU plugin gives the second of two kinds of layers the packed weights of the first
(see `sigcam.runtime.backends.openvino.weights`). Our backend copies such weights in OpenVINO's own
model. A server reads the file itself, so there the copies must be in it; in OpenVINO's format they
can't be, as its writer stores equal constants once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigcam.core.artifact import read_spec, with_spec
from sigcam.core.files import write_bytes

__all__ = ["separate_initializers"]

_LAYERS = {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (0, 1), "Gemm": (0, 1)}
"""The layers with weights, and which of their inputs may be weights."""


def separate_initializers(path: Path) -> int:
    """Gives each kind of layer a copy of the weights that it shares with another kind.

    Args:
        path: of an artifact; it is written anew, with a digest of its own, if copies are needed.

    Returns:
        The number of copies made.

    Raises:
        StorageError: the file can't be written.

    Example:
        separate_initializers(Path("repository/models/net/1/model.onnx"))
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    copies = _Copies(model.graph, path.parent)
    for node in list(model.graph.node):
        for index in _LAYERS.get(node.op_type, ()):
            if index < len(node.input):
                node.input[index] = copies.own(node, index)
    if copies.made:
        copies.insert()
        write_bytes(path, with_spec(model, read_spec(path)))
    return len(copies.made)


class _Copies:
    """The constants of a graph, and the copies of those that several kinds of layers take."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.initializers = {one.name: one for one in graph.initializer}
        self.makers = self._constant_nodes()
        self.first: dict[str, tuple[Any, ...]] = {}
        self.made: dict[tuple[str, tuple[Any, ...]], str] = {}
        self.new_nodes: list[Any] = []

    def own(self, node: Any, index: int) -> str:
        """Returns the name of the value that a layer shall take: its own one, or a copy of it."""
        name: str = node.input[index]
        roots = self._roots(name)
        flags = sorted((one.name, str(one.i)) for one in node.attribute if one.name[:5] == "trans")
        kind = (node.op_type, index, *flags, *self._types(name))
        if all(self.first.setdefault(root, kind) == kind for root in roots):
            return name
        if (name, kind) not in self.made:
            self.made[name, kind] = self._copy(name, f"{name}/copy{len(self.made) + 1}", {})
        return self.made[name, kind]

    def insert(self) -> None:
        """Puts the nodes that make copies in front of all others; they depend on constants only."""
        nodes = [*self.new_nodes, *self.graph.node]
        constants = [one for one in nodes if set(one.output) & set(self.makers)]
        others = [one for one in nodes if not set(one.output) & set(self.makers)]
        del self.graph.node[:]
        self.graph.node.extend([*constants, *others])

    def _constant_nodes(self) -> dict[str, Any]:
        """Returns the nodes that compute constants, by the names of their outputs."""
        found: dict[str, Any] = {}
        for node in self.graph.node:
            inputs = [one for one in node.input if one]
            if node.op_type == "Constant" or (
                inputs and all(one in self.initializers or one in found for one in inputs)
            ):
                found.update(dict.fromkeys(node.output, node))
        return found

    def _roots(self, name: str) -> set[str]:
        """Returns the weights that a constant is made of; nothing for a value that isn't one."""
        if name in self.initializers:
            return {name} if len(self.initializers[name].dims) >= 2 else set()
        node = self.makers.get(name)
        if node is None:
            return set()
        if node.op_type == "Constant":
            return {name}
        return set().union(*(self._roots(one) for one in node.input))

    def _types(self, name: str) -> tuple[str, ...]:
        """Returns the types of the nodes that make a constant, by its first input each."""
        node = self.makers.get(name)
        if node is None:
            return ()
        first = next((one for one in node.input if one), "")
        return (node.op_type, *self._types(first))

    def _copy(self, name: str, new: str, done: dict[str, str]) -> str:
        """Copies a constant with the nodes that make it; returns the name of the copy.

        Args:
            name: of the constant.
            new: what the copies' names begin with.
            done: the copies that were made for this one, by the names of what they are of.
        """
        if not name or name in done:
            return done.get(name, name)
        done[name] = f"{new}/{len(done)}"
        if name in self.initializers:
            self._copy_initializer(self.initializers[name], done[name])
            return done[name]
        import onnx

        node = onnx.NodeProto()
        node.CopyFrom(self.makers[name])
        outputs: Mapping[str, str] = {
            one: done.setdefault(one, f"{new}/{len(done)}") for one in node.output
        }
        inputs = [self._copy(one, new, done) for one in node.input]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs.values())
        node.name = f"{node.name}{new}" if node.name else ""
        self.new_nodes.append(node)
        self.makers.update(dict.fromkeys(outputs.values(), node))
        return done[name]

    def _copy_initializer(self, initializer: Any, name: str) -> None:
        """Copies weights into the graph's own file, wherever the first ones lie.

        Of two that name the same place in a file beside it, OpenVINO may map one memory.
        """
        import onnx
        from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

        copy = onnx.TensorProto()
        copy.CopyFrom(initializer)
        if uses_external_data(copy):
            load_external_data_for_tensor(copy, str(self.folder))
            copy.data_location = onnx.TensorProto.DEFAULT
            del copy.external_data[:]
        copy.name = name
        self.graph.initializer.append(copy)
