"""Writes the graph of an ONNX file in ONNX's own operators, with the images as its only input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.classifier.onnx.expansions import expand
from sigcam.classifier.onnx.file import MOST_BYTES, OnnxFile
from sigcam.classifier.onnx.front import inputs_of
from sigcam.classifier.onnx.quantised_operators import expand_quantised
from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class PlainFile:
    """A file's graph in ONNX's own operators, as far as they can be written so.

    Attributes:
        path: the file.
        sha256: its hash.
        model: the graph, with functions inlined and without inputs that nothing takes.
        own: hashes of the nodes that the file has, as `node_hashes` gives them.
        source: what ONNX Runtime is given to compare with: the file, or its own nodes without
            the inputs that nothing takes.
    """

    path: Path
    sha256: str
    model: onnx.ModelProto
    own: set[bytes]
    source: Path | bytes


def plain_file(file: OnnxFile) -> PlainFile:
    """Writes a file's graph in ONNX's own operators.

    Args:
        file: the file; its graph is changed.

    Raises:
        ModelError: it has inputs that nothing takes, and 2 GiB or more.

    Example:
        plain_file(read_onnx(Path("resnet50.onnx"))).model
    """
    from onnx.inliner import inline_local_functions

    model = file.model
    own = node_hashes(model)
    if model.functions:
        model = inline_local_functions(model)
    source: Path | bytes = file.path
    if _drop_unused_inputs(model):
        source = bytes_of(model, file.path)
    expand(model)
    expand_quantised(model, file.path.parent)
    return PlainFile(file.path, file.sha256, model, own, source)


def node_hashes(model: onnx.ModelProto) -> set[bytes]:
    """Returns hashes of a graph's nodes, to see which were changed."""
    nodes = (node.SerializeToString(deterministic=True) for node in model.graph.node)
    return {hashlib.sha256(node).digest() for node in nodes}


def bytes_of(model: onnx.ModelProto, path: Path) -> bytes:
    """Returns a graph as ONNX Runtime takes it.

    Args:
        model: the graph.
        path: the file that it is of, for messages.

    Raises:
        ModelError: it has 2 GiB or more, without what stays in files beside it.
    """
    content = bytes(model.SerializeToString())
    if len(content) > MOST_BYTES:
        raise ModelError(
            f"{path} must have less than 2 GiB of weights in the form in which it is read, it has "
            f"{len(content) / 2**30:.1f} GiB (quantised operators have their weights in float32 "
            "then); give the file from before it was quantised, its weights in a file beside it"
        )
    return content


def _drop_unused_inputs(model: onnx.ModelProto) -> bool:
    """Removes inputs that no node takes, as Keras's export leaves them; returns if there were."""
    # Stored tensors stay: before version 4 of the format each must be an input.
    used = {name for node in model.graph.node for name in node.input}
    unused = [value for value in inputs_of(model) if value.name not in used]
    for value in unused:
        model.graph.input.remove(value)
    return bool(unused)
