"""Networks and the files that are exported of them, each when it is first needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from sigcam.classifier.branch_file import load_branch
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import LoadedModel, load_model
from sigcam.core.artifact import read_spec
from sigcam.core.files import write_text
from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact, export_classifier

Array = np.ndarray[Any, Any]


class Network:
    """A network with fresh weights: time doesn't depend on them.

    Its images are resized to the input ("stretch"), so that one of the input's size is
    the input itself; a network with trained weights takes them as it was trained to.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        size: int | None = None,
        weights: str = "random",
        branch: Path | None = None,
    ) -> None:
        """Names the network.

        Args:
            name: as `load_model` takes it.
            folder: of the exported files; those that are there are used.
            size: side of the input instead of the network's own.
            weights: as `load_model` takes it.
            branch: file of a trained sigmoid branch; None for a fresh one.
        """
        self._branch = branch
        self.name, self.size, self.weights = name, size, weights
        # A user's own network has a path for a name.
        label = name.replace("/", "-") if ":" not in name else _digest(name)
        kind = "" if weights == "random" else f"-{weights}"
        kind += "" if branch is None else "-branch"
        self._folder = folder / f"{label}{kind}{'' if size is None else f'-{size}'}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made: tuple[LoadedModel, DualBranch] | None = None

    def classifier(self) -> Path:
        """The network without a map."""
        path = self._folder / "classification.onnx"
        if not path.is_file():
            loaded, dual = self._parts()
            export_classifier(dual, path, ExportOptions(preprocessing=loaded.preprocessing))
        return path

    def artifact(self, method: str, **options: Any) -> Path:
        """The network with a map; of the sigmoid branch unless the options say otherwise.

        Raises:
            ExportError: the method can't express the network's head.
        """
        kind = "".join(f"-{key}={_word(value)}" for key, value in sorted(options.items()))
        path = self._folder / f"{method}{kind}.onnx"
        if not path.is_file():
            loaded, dual = self._parts()
            export_artifact(
                dual,
                path,
                ExportOptions(
                    method=method,
                    preprocessing=loaded.preprocessing,
                    # The paper's maps, whose cost is measured.
                    purpose=None if "nwc" in options else "localise",
                    **options,
                ),
            )
        return path

    def softmax_artifact(self, method: str) -> Path:
        """The method as published: softmax branch, no clamping, no sigmoid branch at all."""
        nwc = None if method in ("layercam", "hirescam") else False
        return self.artifact(method, branch="softmax", nwc=nwc, has_sigmoid=False)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file that `make` writes to the path it is given, if it isn't there yet."""
        path = self._folder / name
        if not path.is_file():
            make(path)
        return path

    @property
    def model(self) -> Any:
        """The PyTorch module itself."""
        return self._parts()[0].model

    @property
    def loaded(self) -> LoadedModel:
        """The module with its preprocessing."""
        return self._parts()[0]

    @property
    def dual(self) -> DualBranch:
        """The network with the sigmoid branch."""
        return self._parts()[1]

    def parameters(self) -> dict[str, int]:
        """How many parameters the classifier has, and with the sigmoid branch.

        Inception's auxiliary head, which only its own training uses, isn't counted.
        """

        def ask(path: Path) -> None:
            plain = sum(
                value.numel()
                for name, value in self.model.named_parameters()
                if not name.startswith("AuxLogits.")
            )
            more = sum(value.numel() for value in self.dual.sigmoid_head.parameters())
            write_text(path, json.dumps({"classifier": plain, "with_branch": plain + more}))

        found: dict[str, int] = json.loads(self.made("parameters.json", ask).read_text())
        return found

    def _parts(self) -> tuple[LoadedModel, DualBranch]:
        if self._made is None:
            loaded = load_model(self.name, self.weights)
            preprocessing = loaded.preprocessing
            if self.weights == "random":
                preprocessing = replace(preprocessing, rule="stretch", resize=None)
            if self.size is not None:
                preprocessing = replace(preprocessing, height=self.size, width=self.size)
            size = (preprocessing.height, preprocessing.width)
            dual = DualBranch(loaded.model, input_size=size)
            if self._branch is not None:
                load_branch(self._branch, dual)
            self._made = replace(loaded, preprocessing=preprocessing), dual
        return self._made


def report(path: Path) -> dict[str, Any]:
    """Largest relative error of the CAMs, and images left out for a rounding kink."""
    parity = read_spec(path).parity
    if parity is None:
        raise ValueError(f"{path} has no parity report")
    return {"error": parity.outputs["cams"].max_rel, "left_out": parity.left_out}


def megabytes(path: Path) -> float:
    """Of the weights in a file."""
    graph = onnx.load(path, load_external_data=False).graph
    return round(sum(len(tensor.raw_data) for tensor in graph.initializer) / 1e6, 1)


def random_image(height: int, width: int, seed: int = 0) -> Array:
    """Smooth and random, uint8 [height, width, 3]; no two seeds give the same."""
    coarse = np.random.default_rng(seed).random((7, 7, 3)).astype(np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((255 * fine).clip(0, 255), np.uint8)


def batch_of(shape: tuple[int | None, ...], size: int) -> Array:
    """`size` images for an input of this shape, uint8 [size, H, W, 3]."""
    _, height, width, _ = shape
    if height is None or width is None:
        raise ValueError(f"the input must be uint8 [B, H, W, 3] with fixed H and W, got {shape}")
    return np.stack([random_image(height, width, seed) for seed in range(size)])


def jpeg(image: Array) -> bytes:
    """The image as a file, quality 90."""
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return bytes(data)


def _word(value: Any) -> str:
    if isinstance(value, ClassSelection):
        return "-".join(str(v) for v in asdict(value).values() if v is not None)
    return str(value)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]
