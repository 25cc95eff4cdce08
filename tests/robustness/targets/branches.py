"""Branch files, damaged."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import torch

from sigcam.classifier.branch_file import (
    METADATA_KEY,
    BranchInfo,
    load_branch,
    read_branch_info,
    save_branch,
)
from sigcam.core.digest import BRANCH_DIGEST_FIELD
from sigcam.core.spec import Preprocessing
from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_safetensors, sealed_again
from tests.robustness.target import Fault, Target
from tests.support.toy import SIZE, toy_dual


class Branches(Target):
    """Branch files: their spec read, and loaded into the model that they belong to."""

    def make_corpus(self, folder: Path) -> None:
        for name, deep in (("linear", False), ("deep", True)):
            dual = toy_dual(deep=deep)
            info = BranchInfo(
                "toy", dual.branch_layer, 4, Preprocessing(SIZE, SIZE), "toy images",
                class_names=("a", "b", "c", "d"), settings={"epochs": 2, "seed": 0},
            )  # fmt: skip
            save_branch(folder / f"{name}.safetensors", dual, info)
            replaced = replace(info, replaced_classes=True)
            save_branch(folder / f"{name}-replaced.safetensors", dual, replaced, "float16")

    def open(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._whole = {file.stem: file.read_bytes() for file in sorted(folder.iterdir())}
        self._duals = {name: toy_dual(deep=name.startswith("deep")) for name in self._whole}

    def damage(self, rng: random.Random, scratch: Path) -> str:
        self._name = rng.choice(tuple(self._whole))
        whole = self._whole[self._name]
        if rng.random() < 0.7:
            entry = METADATA_KEY if rng.random() < 0.7 else ""
            made, done = mutate_safetensors(whole, rng, entry)
            made = sealed_again(made, BRANCH_DIGEST_FIELD) if rng.random() < 0.7 else made
        else:
            made, done = mutate_bytes(whole, rng, rng.choice(tuple(self._whole.values())))
        (scratch / "branch.safetensors").write_bytes(made)
        return done

    def check(self, rng: random.Random, scratch: Path) -> None:
        file = scratch / "branch.safetensors"
        dual = copy.deepcopy(self._duals[self._name])
        read_branch_info(file)
        load_branch(file, dual)
        for tensor in dual.state_dict().values():
            if not torch.isfinite(tensor).all():
                raise Fault("wrong", "values that aren't finite were loaded")
