"""Reads an ONNX file into a classifier, compared with the file in ONNX Runtime.

`read_classifier` goes through these steps, in this order:

1. `read_onnx` opens the file, with the weights beside it.
2. `plain_file` writes its graph in ONNX's own operators.
3. `find_input`, `chosen_output` and `check_graph` say what it takes and gives, and refuse what
   can't be read.
4. `_to_form` leaves the part that the output needs, without rounding, and taking R, G, B.
5. `OnnxClassifier` makes torch operators of the nodes, `plan_batch` of one image any number.
6. `_compare` runs both. What ONNX Runtime is given is the file itself, or the graph as it was
   after the last change that the file's own output doesn't survive: a cut, or rounding left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sigcam.classifier.onnx.batch import plan_batch
from sigcam.classifier.onnx.channel_order import in_order, take_rgb
from sigcam.classifier.onnx.checks import check_graph
from sigcam.classifier.onnx.compare import check_logits, original_logits, probe_images
from sigcam.classifier.onnx.file import read_onnx
from sigcam.classifier.onnx.front import Input, find_input
from sigcam.classifier.onnx.held import HeldFile
from sigcam.classifier.onnx.outputs import chosen_output
from sigcam.classifier.onnx.plain import PlainFile, bytes_of, node_hashes, plain_file
from sigcam.classifier.onnx.quantised_graph import float_path
from sigcam.classifier.onnx.reader import OnnxGraph
from sigcam.classifier.onnx.strided import undo_strided
from sigcam.classifier.onnx.values import HALVES, needed
from sigcam.core.errors import ModelError
from sigcam.core.spec import ChannelOrder

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
_HALF_TOLERANCE = 2e-2
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
        self,
        graph: onnx.GraphProto,
        opset: int,
        takes: Input,
        output: str,
        digest: str,
        folder: Path,
    ) -> None:
        """Reads a graph; see `OnnxGraph`."""
        super().__init__(graph, opset, takes.name, output, folder)
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
    return classifier_of(plain_file(read_onnx(path)), output, size, channel_order)


def classifier_of(
    file: PlainFile,
    output: str | None = None,
    size: tuple[int, int] | None = None,
    channel_order: ChannelOrder | None = None,
) -> ReadClassifier:
    """Reads a classifier out of a file's graph; see `read_classifier`.

    Args:
        file: the file; its graph is changed, and kept in what is returned.
        output: as for `read_classifier`.
        size: as for `read_classifier`.
        channel_order: as for `read_classifier`.

    Raises:
        UsageError, ModelError, ParityError: as `read_classifier`, but for what isn't ONNX.
    """
    model, where = file.model, str(file.path)
    takes = find_input(model, where, channel_order)
    name = chosen_output(model, output, where)
    opset = check_graph(model, name, where)
    form = _to_form(file, takes, name, opset)
    read = OnnxClassifier(model.graph, opset, takes, name, file.sha256, file.path.parent)
    read.eval().requires_grad_(False)
    read.size = height, width = _size(takes, size, where)
    shape = (height, width, takes.channels) if takes.nhwc else (takes.channels, height, width)
    plan_batch(read, shape, takes.batch or 1)
    half = any(t.data_type in HALVES for t in model.graph.initializer)
    tolerance = _HALF_TOLERANCE if half else TOLERANCE
    num_classes, error = _compare(read, form.source, tolerance, file.path)
    whole = form.source if isinstance(form.source, bytes) else file.path.resolve()
    read.held = HeldFile(file.path, whole, model, form.changes, tolerance)
    notes = _notes(where, form, takes, asked=channel_order is not None)
    if half:
        notes.append(
            f"{where} is in half precision; here it is computed in float32, which moves its "
            f"logits by {error:.1e}"
        )
    return ReadClassifier(read, takes, (height, width), num_classes, error, tuple(notes))


@dataclass(frozen=True)
class _Form:
    """How a file's graph became what is read.

    Attributes:
        source: what ONNX Runtime is given to compare with.
        pairs: the number of places where rounding was left out.
        changes: what was changed in the file's graph, in words.
    """

    source: Path | bytes
    pairs: int
    changes: str


def _to_form(file: PlainFile, takes: Input, output: str, opset: int) -> _Form:
    """Brings a graph into the form that is read: one output, no rounding, R, G, B."""
    model, source, where = file.model, file.source, str(file.path)
    if _cut(model, output):
        source = bytes_of(model, file.path)
    undo_strided(model)
    changes = []
    if node_hashes(model) - file.own:
        changes.append("with some of them written as ONNX's plain operators")
    pairs = float_path(model, opset)
    if pairs:
        source = bytes_of(model, file.path)
        changes.append("without the rounding between its layers")
    if takes.order == "bgr":
        take_rgb(model, takes, where)
        changes.append("with a node that turns R, G, B into B, G, R")
    return _Form(source, pairs, ", ".join(changes))


def _notes(where: str, form: _Form, takes: Input, *, asked: bool) -> list[str]:
    """Says what a user must know of a graph's form; `asked`: for this order of the channels."""
    notes = []
    if form.pairs:
        notes.append(
            f"{where} is quantised: the rounding at {form.pairs} places is left out, as no "
            "gradient passes it; the logits are those of the network without it"
        )
    if takes.order == "bgr":
        by = "" if asked else f" ({takes.front.reason} says so)"
        notes.append(f"{where} takes its channels as B, G, R{by}; the graph turns RGB into that")
    return notes


def _compare(
    read: OnnxClassifier, source: Path | bytes, tolerance: float, path: Path
) -> tuple[int, float]:
    """Compares what was read with ONNX Runtime; returns the number of outputs and the error."""
    images = probe_images(read.takes, read.size)
    given = in_order(images, read.takes)
    original = original_logits(source, read.output_name, read.takes, given, path.parent)
    with torch.no_grad():
        found = read(torch.from_numpy(images))
    return original.shape[1], check_logits(found, original, tolerance, str(path))


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
