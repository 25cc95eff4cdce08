"""Reads an ONNX file into a classifier, compared with the file in ONNX Runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sigcam.classifier.onnx.batch import plan_batch
from sigcam.classifier.onnx.channel_order import in_order, take_rgb
from sigcam.classifier.onnx.checks import check_graph
from sigcam.classifier.onnx.compare import check_logits, original_logits, probe_images
from sigcam.classifier.onnx.expansions import expand
from sigcam.classifier.onnx.file import read_onnx
from sigcam.classifier.onnx.front import Input, find_input, inputs_of
from sigcam.classifier.onnx.held import HeldFile
from sigcam.classifier.onnx.outputs import chosen_output
from sigcam.classifier.onnx.quantised_graph import float_path
from sigcam.classifier.onnx.quantised_operators import expand_quantised
from sigcam.classifier.onnx.reader import OnnxGraph
from sigcam.classifier.onnx.strided import undo_strided
from sigcam.classifier.onnx.values import needed
from sigcam.core.digest import digest_of
from sigcam.core.errors import ModelError
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
_HALF_TOLERANCE = 2e-2
_HALF = (10, 16)
_SIZE = 224
"""The side of images for a graph that takes any."""


class OnnxClassifier(OnnxGraph):
    """A classifier that was read out of an ONNX file, images to what the file's output holds.

    It takes images float32 [B, C, H, W], whatever layout and order of channels the file takes.

    Attributes:
        takes: what the file takes.
        file_sha256: the file's hash.
        channel_order: the order in which the file takes three channels; here it is RGB.
        held: the file's graph; None until it was compared with this.
        size: height and width of the images that it was compared at.
        is_whole: whether all of it is the file's; not where its last layer was re-made.
    """

    takes: Input
    file_sha256: str
    channel_order: ChannelOrder
    held: HeldFile | None
    size: tuple[int, int]
    is_whole: bool

    def __init__(
        self, graph: onnx.GraphProto, opset: int, takes: Input, output: str, digest: str
    ) -> None:
        """Reads a graph; see `OnnxGraph`."""
        super().__init__(graph, opset, takes.name, output)
        self.takes, self.file_sha256, self.channel_order = takes, digest, takes.order
        self.held = None
        self.is_whole = True

    def forward(self, images: Tensor) -> Tensor:
        """Returns the file's output for images float32 [B, C, H, W]."""
        images = images.permute(0, 2, 3, 1) if self.takes.nhwc else images
        return super().forward(images.to(torch.uint8) if self.takes.is_bytes else images)


@dataclass(frozen=True)
class ReadClassifier:
    """What `read_classifier` found.

    Attributes:
        model: in inference mode.
        takes: what the file takes.
        size: height and width that it was compared at.
        num_classes: the number of its outputs for an image.
        difference: of its output from the file's in ONNX Runtime, as a share of the largest.
        notes: sentences for the user.
    """

    model: nn.Module
    takes: Input
    size: tuple[int, int]
    num_classes: int
    difference: float
    notes: tuple[str, ...]


def read_classifier(
    path: Path,
    output: str | None = None,
    size: tuple[int, int] | None = None,
    channel_order: ChannelOrder | None = None,
) -> ReadClassifier:
    """Reads a classifier out of an ONNX file.

    Args:
        path: the file.
        output: the name of the value to take, an output or one inside of the graph; None for
            the only output of the form [B, C].
        size: height and width of the images, for a file that takes any; 224 when None.
        channel_order: the order in which the file takes three channels; None for what it says
            itself, or RGB.

    Raises:
        UsageError: there is no such output, or no such order of the channels.
        ModelError: the file isn't ONNX, no classifier's, or has what can't be read.
        ParityError: the graph that was read doesn't give the file's logits.

    Example:
        read_classifier(Path("resnet50.onnx")).takes.nhwc  # False
    """
    from onnx.inliner import inline_local_functions

    model, where = read_onnx(path), str(path)
    own = _nodes(model)
    source: Path | bytes = path
    if model.functions:
        model = inline_local_functions(model)
    if _drop_unused_inputs(model):
        source = _bytes_of(model, where)
    expand(model)
    expand_quantised(model)
    takes = find_input(model, where, channel_order)
    name = chosen_output(model, output, where)
    opset = check_graph(model, name, where)
    notes = []
    if _cut(model, name):
        source = _bytes_of(model, where)
    undo_strided(model)
    plain = _nodes(model)
    pairs = float_path(model, opset)
    if pairs:
        notes.append(
            f"{where} is quantised: the rounding at {pairs} places is left out, as no gradient "
            "passes it; the logits are those of the network without it"
        )
        source = _bytes_of(model, where)
    if takes.order == "bgr":
        take_rgb(model, takes, where)
        by = "" if channel_order else f" ({takes.front.reason} says so)"
        notes.append(f"{where} takes its channels as B, G, R{by}; the graph turns RGB into that")
    with path.open("rb") as stream:
        digest = digest_of(stream)
    read = OnnxClassifier(model.graph, opset, takes, name, digest)
    read.eval().requires_grad_(False)
    read.size = height, width = _size(takes, size, where)
    shape = (height, width, takes.channels) if takes.nhwc else (takes.channels, height, width)
    plan_batch(read, shape, takes.batch or 1)
    images = probe_images(takes, (height, width))
    original = original_logits(source, name, takes, in_order(images, takes))
    with torch.no_grad():
        found = read(torch.from_numpy(images))
    half = any(t.data_type in _HALF for t in model.graph.initializer)
    tolerance = _HALF_TOLERANCE if half else TOLERANCE
    error = check_logits(found, original, tolerance, where)
    changes = ["with some of them written as ONNX's plain operators"] if plain - own else []
    changes += ["without the rounding between its layers"] if pairs else []
    changes += ["with a node that turns R, G, B into B, G, R"] if takes.order == "bgr" else []
    whole = source if isinstance(source, bytes) else path.resolve()
    read.held = HeldFile(path, whole, model, ", ".join(changes), tolerance)
    if half:
        notes.append(
            f"{where} is in half precision; here it is computed in float32, which moves its "
            f"logits by {error:.1e}"
        )
    return ReadClassifier(read, takes, (height, width), original.shape[1], error, tuple(notes))


def _nodes(model: onnx.ModelProto) -> set[bytes]:
    """Returns hashes of a graph's nodes, to see which were changed."""
    nodes = (node.SerializeToString(deterministic=True) for node in model.graph.node)
    return {hashlib.sha256(node).digest() for node in nodes}


def _cut(model: onnx.ModelProto, output: str) -> bool:
    """Takes away what a value doesn't need: ONNX Runtime runs all of a file, or refuses it.

    Returns:
        Whether anything was taken away, or the value is no output of the file.
    """
    import onnx

    nodes = needed(model.graph, output)
    own = next((o for o in model.graph.output if o.name == output), None)
    if own is not None and len(nodes) == len(model.graph.node):
        return False
    kept = own or onnx.ValueInfoProto(name=output)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(kept)
    return True


def _bytes_of(model: onnx.ModelProto, where: str) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except ValueError as exc:  # over 2 GiB
        raise ModelError(
            f"{where} must have less than 2 GiB where only a part of it is read, or it is "
            f"quantised; cut it at its logits first (onnx.utils.extract_model)"
        ) from exc


def _drop_unused_inputs(model: onnx.ModelProto) -> bool:
    """Removes inputs that no node takes, as Keras's export leaves them; returns if there were."""
    # Stored tensors stay: before version 4 of the format each must be an input.
    used = {name for node in model.graph.node for name in node.input}
    unused = [value for value in inputs_of(model) if value.name not in used]
    for value in unused:
        model.graph.input.remove(value)
    return bool(unused)


def _size(takes: Input, asked: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """Returns the size of the images: the file's, or the one that was asked for."""
    own = (takes.height, takes.width)
    for have, want in zip(own, asked or own, strict=True):
        if have is not None and want is not None and have != want:
            raise ModelError(
                f"{where} takes images of {own[0]}x{own[1]}, the size asked for is "
                f"{asked}; leave the size out, or export the model with another"
            )
    wanted = asked or (_SIZE, _SIZE)
    return own[0] or wanted[0], own[1] or wanted[1]
