"""Engines and their sidecars, damaged, with a stand-in for TensorRT."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import sigcam
from sigcam.cli import main
from tests.robustness.commands import run_command
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_json, sealed_again
from tests.robustness.target import Fault, Target, use_all
from tests.support.fake_tensorrt import write_engine
from tests.support.tensorrt_machine import install_machine


class Sidecars(Target):
    """Sidecars (and now and then the engine): shown by `sigcam info`, loaded and run."""

    def make_corpus(self, folder: Path) -> None:
        write_engine(folder)

    def open(self, folder: Path) -> None:
        self._whole = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        self._image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        install_machine(pytest.MonkeyPatch(), "tensorrt")
        self._result = self._run(folder / "model.engine")

    def damage(self, rng: random.Random, scratch: Path) -> str:
        files = dict(self._whole)
        name = "model.engine" if rng.random() < 0.1 else "model.engine.json"
        if name == "model.engine" or rng.random() < 0.2:
            made, done = mutate_bytes(files[name], rng, files["model.onnx"])
        else:
            text, done = mutate_json(files[name].decode(), rng)
            made = text.encode("utf-8", "surrogatepass")
            made = sealed_again(made) if rng.random() < 0.7 else made
        files[name] = made
        for each, data in files.items():
            (scratch / each).write_bytes(data)
        self._changed = name
        return f"{name}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        engine = scratch / "model.engine"
        use_all((lambda: self._use(engine), lambda: run_command(main, "info", engine)))

    def _use(self, engine: Path) -> None:
        result = self._run(engine)
        if self._changed == "model.engine":
            raise Fault("unnoticed", "an engine with other bytes than its sidecar says was loaded")
        if not np.isfinite(result).all():
            raise Fault("wrong", "a result that isn't finite")

    def _run(self, engine: Path) -> np.ndarray:
        with sigcam.load(engine) as session:
            [one] = session.explain(self._image)
            return one.heatmap
