"""Exported models, damaged: the graph, its external weights and its head graph."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sigcam
from sigcam.core.artifact import head_path, read_spec
from sigcam.core.errors import SigcamError
from sigcam.core.types import Array
from sigcam.core.verify import verified
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_protobuf
from tests.robustness.target import Fault, Target

OTHER_BACKEND = 0.15
"""Share of the items that OpenVINO runs; ONNX Runtime runs the others."""


@dataclass(frozen=True)
class _Whole:
    """An undamaged model.

    Attributes:
        files: their bytes by name; the first one is the artifact.
        result: what it gives for the image.
    """

    files: dict[str, bytes]
    result: Array


class Artifacts(Target):
    """Artifacts: loaded and run, with a look at the spec, the head graph and `verify`."""

    def make_corpus(self, folder: Path) -> None:
        import torch

        from sigcam.classifier.dual_branch import DualBranch
        from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
        from sigcam.core.spec import Preprocessing
        from sigcam.export import ExportOptions, export_artifact
        from tests.support.exporter import read_operators_once
        from tests.support.toy import SIZE, Toy, write_image

        torch.manual_seed(3)
        torch.set_num_threads(1)
        kinds = {
            "plain": {},
            "parts": {"external_data": True, "head_graph": True, "method": "gradcam"},
        }
        for name, options in kinds.items():
            (folder / name).mkdir()
            read_operators_once()
            dual = DualBranch(Toy(4), None, input_size=SIZE, architecture="toy")
            preprocessing = Preprocessing(SIZE, SIZE)
            export_artifact(
                dual,
                folder / name / "model.onnx",
                ExportOptions(purpose="localise", preprocessing=preprocessing, **options),
            )
        images = folder / "images"
        for number in range(16):
            write_image(images / f"{number}.png", number % 4, number)
        (folder / "int8").mkdir()
        few = QuantizeOptions(calibration=8, held_out=8, min_agreement=0, min_correlation=-1)
        quantize_artifact(folder / "plain/model.onnx", images, folder / "int8/model.onnx", few)
        shutil.rmtree(images)

    def open(self, folder: Path) -> None:
        self._image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        self._whole = []
        for kind in sorted(folder.iterdir()):
            names = sorted(
                (file.name for file in kind.iterdir()), key=lambda n: (n != "model.onnx", n)
            )
            files = {name: (kind / name).read_bytes() for name in names}
            self._whole.append(_Whole(files, self._run(kind / "model.onnx", "ort")))

    def damage(self, rng: random.Random, scratch: Path) -> str:
        self._chosen, self._gone = rng.choice(self._whole), set()
        files = dict(self._chosen.files)
        name = rng.choice(tuple(files))
        whole = files[name]
        other = rng.choice([one.files["model.onnx"] for one in self._whole])
        if not name.endswith(".data") and rng.random() < 0.5:
            made, done = mutate_protobuf(whole, rng)
        else:
            made, done = mutate_bytes(whole, rng, other)
        if made == whole:
            made, done = whole[:-1], "truncated"
        files[name] = made
        for each, data in files.items():
            (scratch / each).write_bytes(data)
        if rng.random() < 0.03:
            (scratch / name).unlink()
            self._gone, done = {name}, "file removed"
        return f"{name}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        model = scratch / "model.onnx"
        self._check_verify(model)
        backend = "openvino" if rng.random() < OTHER_BACKEND else "ort"
        read_spec(model)
        result = self._run(model, backend)
        if not np.isfinite(result).all():
            raise Fault("wrong", "a result that isn't finite")

    def _check_verify(self, model: Path) -> None:
        """Something is changed, so that `verify` must refuse it, whatever comes out."""
        if head_path(model).name in self._gone:
            return  # an artifact may go without its head graph
        passed = [
            name
            for name, way in (
                ("load", lambda: self._run(model, "ort", verify=True)),
                ("verify", lambda: verified(model)),
            )
            if not _refuses(way)
        ]
        if passed:
            raise Fault("unnoticed", f"{' and '.join(passed)} took it")

    def _run(self, model: Path, backend: str, *, verify: bool = False) -> Array:
        """Returns probability, evidence and map of the image; with a head graph of two classes."""
        with sigcam.load(model, backend, threads=1, verify=verify) as session:
            found = session.explain(self._image)
            if head_path(model).is_file():
                found = [*found, *found[0].for_classes([0, 2])]
            return np.concatenate(
                [np.append(one.heatmap.ravel(), (one.probability, one.evidence)) for one in found]
            )


def _refuses(way: Callable[[], object]) -> bool:
    try:
        way()
    except SigcamError:
        return True
    return False
