"""The commands that are killed and starved, on a network that trains and exports in a second."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.robustness import sandbox
from tests.robustness.target import Fault

OUT = "out"
"""Where all outputs go, in the working folder; everything else there is an input."""

NET = """
import torch
from torch import nn

def net(num_classes=2):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
_IMAGES = 20
_QUANTIZE = (
    "--data", "data", "--calibration", "8", "--held-out", "8",
    "--min-agreement", "0", "--min-correlation", "-1",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command whose end is known.

    Attributes:
        arguments: of `sigcam`, in the working folder.
        same: the files in `OUT` that each run must leave with the same bytes.
        model: the artifact among them; "" without one.
        older: arguments that make older outputs, over which the command may write; None for a
            command that goes on with what it finds.
        resumed: the file that says that the next run can go on, and the option that it takes.
    """

    arguments: tuple[str, ...]
    same: tuple[str, ...]
    older: tuple[str, ...] | None = None
    resumed: tuple[str, str] | None = None
    model: str = ""


_TRAIN = (
    "train", "--arch", "net.py:net", "--num-classes", "2", "--data", "data", "--size", "32",
    "--views", "2", "--batch-size", "4", "--epochs", "6", "--out", "out/branch.safetensors",
    "--cache-dir", "out/cache",
)  # fmt: skip
_EXPORT = ("export", "--sigmoid-branch", "branch.safetensors", "--head-graph", "--external-data",
           "--out", "out/model.onnx", "--purpose")  # fmt: skip
_BUILD = ("build-engine", "split.onnx", "--package", "tensorrt_rtx", "--out",
          "out/split.rtx.engine", "--max-batch")  # fmt: skip

COMMANDS = {
    "train": Command(
        _TRAIN,
        ("branch.safetensors",),
        resumed=("out/branch.run/checkpoint.pt", "--resume"),
    ),
    "export": Command(
        (*_EXPORT, "localise"),
        ("model.onnx", "model.onnx.data", "model.head.onnx"),
        (*_EXPORT, "discriminate"),
        model="model.onnx",
    ),
    "quantize": Command(
        ("quantize", "model.onnx", *_QUANTIZE, "--out", "out/small.onnx", "--precision", "int8"),
        ("small.onnx", "small.head.onnx"),
        ("quantize", "model.onnx", *_QUANTIZE, "--out", "out/small.onnx", "--precision", "fp16"),
        model="small.onnx",
    ),
    "build-engine": Command((*_BUILD, "2"), (), (*_BUILD, "3")),
    "evaluate": Command(
        ("evaluate", "model.onnx", "--data", "data", "--out", "out/report", "--steps", "8",
         "--resamples", "50"),
        ("report/report.html", "report/report.md", "report/report.json", "report/images.csv"),
    ),
    "explain": Command(
        ("explain", "model.onnx", "data", "--out", "out/maps"),
        tuple(f"maps/{kind}/{i}.png" for kind in ("green", "red") for i in range(_IMAGES)),
    ),
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Writes the working folder: network, images, branch file and artifacts."""
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("green", "red")):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(_IMAGES):
            image = rng.integers(0, 60, (40 + index, 50, 3), dtype=np.uint8)
            image[8:30, 10:36, 1 + number] = 230  # BGR: green, then red
            cv2.imwrite(str(folder / "data" / name / f"{index}.png"), image)
    whole(sandbox.run(_TRAIN, folder))
    whole(sandbox.run((*_EXPORT[:2], "out/branch.safetensors", *_EXPORT[3:], "localise"), folder))
    split = ("export", "--sigmoid-branch", "out/branch.safetensors", "--profile", "split")
    whole(sandbox.run((*split, "--out", "out/split.onnx"), folder))
    for file in sorted((folder / OUT).iterdir()):
        if file.is_file():
            file.rename(folder / file.name)
    shutil.rmtree(folder / OUT)


def make_corpus(folder: Path) -> None:
    """Runs every command undisturbed, and writes down what it does, as known.json.

    A folder for each command holds what it leaves; one with "-older" the older outputs.
    """
    sandbox.import_commands()
    inputs = folder / "inputs"
    inputs.mkdir()
    make_inputs(inputs)
    known = {}
    for name, command in COMMANDS.items():
        ended = _undisturbed(command.arguments, inputs, folder / name)
        found = sandbox.hashes(folder / name / OUT)
        older = {}
        if command.older is not None:
            _undisturbed(command.older, inputs, folder / f"{name}-older")
            older = sandbox.hashes(folder / f"{name}-older" / OUT)
        made = (name, f"{name}-older") if command.model else ()
        known[name] = {
            "seconds": ended.seconds,
            "changes": ended.changes,
            "files": sorted(found),
            "same": {file: found[file] for file in command.same},
            "older": older,
            "results": [result_in_child(folder / one / OUT / command.model) for one in made],
        }
    (folder / "known.json").write_text(json.dumps(known))


def _undisturbed(arguments: tuple[str, ...], inputs: Path, folder: Path) -> sandbox.Ended:
    shutil.copytree(inputs, folder)
    return whole(sandbox.run(arguments, folder))


def whole(ended: sandbox.Ended) -> sandbox.Ended:
    """Returns a run that succeeded.

    Raises:
        Fault: it failed, though nothing stood in its way.
    """
    if ended.code:
        raise Fault("stuck", f"exit code {ended.code}: {ended.stderr.strip()[-300:]}")
    return ended


def result_of(model: Path) -> str:
    """Returns the digest of what an artifact gives for an image; "" where it is refused."""
    import sigcam
    from sigcam.core.errors import SigcamError

    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    try:
        with sigcam.load(model, "ort", threads=1) as session:
            found = session.explain(image)
            found += found[0].for_classes([0, 1])
    except SigcamError:
        return ""
    total = hashlib.sha256()
    for one in found:
        total.update(one.heatmap.tobytes() + repr((one.probability, one.evidence)).encode())
    return total.hexdigest()


def result_in_child(model: Path) -> str:
    """The same, in a process of its own."""
    return sandbox.in_child(lambda: result_of(model))


def check_files(folder: Path) -> None:
    """Looks at every file in the outputs that isn't hidden.

    Raises:
        Fault: one of them isn't whole.
    """
    for file in sorted((folder / OUT).rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        look = _LOOKS.get(file.suffix)
        if not file.is_file() or hidden or look is None:
            continue
        try:
            look(file)
        except Exception as exc:
            text = f"{file.relative_to(folder)} isn't whole: {type(exc).__name__}: {exc}"
            raise Fault("half", text) from exc


def _model(file: Path) -> None:
    import onnx

    from sigcam.core.artifact import read_spec

    read_spec(file)
    onnx.load(str(file), load_external_data=False)


def _engine(file: Path) -> None:
    from sigcam.core.errors import ArtifactError
    from sigcam.core.sidecar import read_sidecar

    try:
        sidecar = read_sidecar(file)
    except ArtifactError:
        return  # refused, as an engine is that has come without its sidecar
    data = file.read_bytes()
    if not data or (len(data) == sidecar.size and (
        hashlib.sha256(data).hexdigest() != sidecar.sha256
    )):  # fmt: skip
        raise ValueError("other bytes than the sidecar says")


def _table(file: Path) -> None:
    text = file.read_text()
    if not text.endswith("\n") or len({len(row) for row in csv.reader(text.splitlines())}) != 1:
        raise ValueError("a line is cut")


def _page(file: Path) -> None:
    if not file.read_text().rstrip().endswith("</html>"):
        raise ValueError("the end of the page is missing")


def _image(file: Path) -> None:
    from sigcam.images.decode import read_image

    read_image(file)


def _branch(file: Path) -> None:
    from safetensors.torch import load_file

    load_file(file)


def _checkpoint(file: Path) -> None:
    import torch

    torch.load(file, weights_only=True)


_LOOKS: dict[str, Callable[[Path], object]] = {
    ".onnx": _model,
    ".engine": _engine,
    ".safetensors": _branch,
    ".pt": _checkpoint,
    ".json": lambda file: json.loads(file.read_text()),
    ".csv": _table,
    ".html": _page,
    ".png": _image,
    ".npy": lambda file: np.load(file, mmap_mode="r"),
}
"""How a file is looked at, by its suffix. Records and locks are the next run's to judge."""
