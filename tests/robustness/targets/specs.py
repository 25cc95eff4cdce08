"""Specs with wrong fields, in an artifact that is whole besides."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx

import sigcam
from sigcam.cli import main
from sigcam.core.spec import ClassSelection
from tests.robustness.commands import run_command
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_json
from tests.robustness.target import Target
from tests.support.tiny import artifact_graph, tiny_spec, write


class Specs(Target):
    """Specs: shown by `sigcam info`, and their artifact loaded and run."""

    def make_corpus(self, folder: Path) -> None:
        from sigcam.core.spec import FidelityReport, OutputError, ParityReport

        parity = ParityReport(
            "torch 2.14 float64", "onnxruntime", 1e-4, (1, 3), "noise", {"cams": OutputError(0, 0)}
        )
        fidelity = FidelityReport(
            precision="int8", backend="onnxruntime", images=100, calibration=64, seed=0,
            agreement=0.99, compared=99, mean_correlation=0.998, worst_correlation=0.97,
            mean_box_iou=0.9, min_agreement=0.98, min_correlation=0.99, kept_float=("conv1",),
        )  # fmt: skip
        changes = {"parity": parity, "fidelity": fidelity, "method_options": {"gamma": 0.6}}
        for number, classes in enumerate((ClassSelection("top1"), ClassSelection("input"))):
            spec = tiny_spec(classes=classes, **changes)
            file = folder / f"{number}.onnx"
            write(onnx, artifact_graph(onnx, spec), file, spec.to_json())
            file.with_suffix(".json").write_text(spec.to_json(), encoding="utf-8")

    def open(self, folder: Path) -> None:
        self._image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        self._whole = [
            (onnx.load(str(file)), file.with_suffix(".json").read_text(encoding="utf-8"))
            for file in sorted(folder.glob("*.onnx"))
        ]

    def damage(self, rng: random.Random, scratch: Path) -> str:
        model, text = rng.choice(self._whole)
        if rng.random() < 0.8:
            text, done = mutate_json(text, rng)
            made = text.encode("utf-8", "surrogatepass")
        else:
            made, done = mutate_bytes(text.encode(), rng, b'{"schema_version": 2}')
        [entry] = [one for one in model.metadata_props if one.key == "sigcam"]
        # The library takes UTF-8 alone. A place of the same length is overwritten afterwards.
        entry.value = _PLACE * (len(made) // len(_PLACE) + 1)
        entry.value = entry.value[: len(made)]
        data = model.SerializeToString()
        (scratch / "model.onnx").write_bytes(data.replace(entry.value.encode(), made))
        return done

    def check(self, rng: random.Random, scratch: Path) -> None:
        model = scratch / "model.onnx"
        run_command(main, "info", model)
        run_command(main, "info", model, "--json")
        with sigcam.load(model, "ort", threads=1, verify=False) as session:
            for one in session.explain(self._image):
                one.to_dict()


_PLACE = "the spec's place, "
