"""Files of weights and training checkpoints, damaged."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from sigcam.classifier.zoo.weights import load_weights
from sigcam.train.checkpoint import State, load_checkpoint, save_checkpoint
from sigcam.train.settings import EpochMetrics
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_json, mutate_safetensors, mutate_zip
from tests.robustness.target import Fault, Target
from tests.support.toy import toy_model

_RUN = {"seed": 0, "epochs": 2, "classes": ["a", "b"]}


class Checkpoints(Target):
    """Weights into the model that they belong to, and a training's checkpoint read again."""

    def make_corpus(self, folder: Path) -> None:
        model = toy_model()
        state = model.state_dict()
        torch.save(state, folder / "weights.pth")
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
                   folder / "nested.ckpt")  # fmt: skip
        torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
        save_file(state, folder / "model.safetensors")
        index = {"weight_map": dict.fromkeys(state, "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.zeros(2, 3, 16, 16)).sum().backward()
        optimizer.step()
        metrics = EpochMetrics(1, 0.25, 0.9, 2.0, 50.0)
        made = State(epoch=1, step=3, sums=torch.ones(3), history=[metrics])
        save_checkpoint(folder, _RUN, made, state, optimizer.state_dict())
        (folder / "metrics.csv").unlink()

    def open(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._whole = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    def damage(self, rng: random.Random, scratch: Path) -> str:
        name = rng.choice(tuple(self._whole))
        whole = self._whole[name]
        if name.endswith(".json"):
            text, done = mutate_json(whole.decode(), rng)
            made = text.encode("utf-8", "surrogatepass")
            (scratch / "model.safetensors").write_bytes(self._whole["model.safetensors"])
        elif name.endswith(".safetensors") and rng.random() < 0.5:
            made, done = mutate_safetensors(whole, rng)
        elif whole.startswith(b"PK") and rng.random() < 0.5:
            made, done = mutate_zip(whole, rng)
        else:
            made, done = mutate_bytes(whole, rng, rng.choice(tuple(self._whole.values())))
        (scratch / name).write_bytes(made)
        self._name = name
        return f"{name}: {done}"

    def check(self, rng: random.Random, scratch: Path) -> None:
        if self._name == "checkpoint.pt":
            state, classifier, _ = load_checkpoint(scratch, _RUN)
            asdict(state)
            toy_model().load_state_dict(classifier)
            return
        model = toy_model()
        load_weights(model, scratch / self._name)
        for tensor in model.state_dict().values():
            if not torch.isfinite(tensor).all():
                raise Fault("wrong", "values that aren't finite were loaded")
