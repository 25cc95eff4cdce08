"""Commands that get SIGKILL at any moment, and are run again."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from tests.robustness import sandbox, work
from tests.robustness.target import Fault, Target


class Kills(Target):
    """A killed command leaves no half file, and the next run ends as an undisturbed one.

    Half of the moments are times, drawn from the length of an undisturbed run. The others are
    changes of files (opened to write, renamed, removed), just before which the process ends.
    """

    seconds = 240.0

    def make_corpus(self, folder: Path) -> None:
        work.make_corpus(folder)

    def open(self, folder: Path) -> None:
        sandbox.import_commands()
        self._folder = folder
        self._known = json.loads((folder / "known.json").read_text())

    def damage(self, rng: random.Random, scratch: Path) -> str:
        self._name = name = rng.choice(tuple(work.COMMANDS))
        known, command = self._known[name], work.COMMANDS[name]
        shutil.copytree(self._folder / "inputs", scratch, dirs_exist_ok=True)
        self._inputs = sandbox.hashes(scratch)
        self._older = command.older is not None and rng.random() < 0.4
        if self._older:
            shutil.copytree(self._folder / f"{name}-older" / work.OUT, scratch / work.OUT)
        done = f"{name}{' over older files' if self._older else ''}: killed"
        if rng.random() < 0.5:
            seconds = rng.uniform(0, known["seconds"])
            self._ended = sandbox.run(command.arguments, scratch, kill_after=seconds)
            return f"{done} after {seconds:.3f} s"
        change = rng.randint(1, known["changes"])
        self._ended = sandbox.run(command.arguments, scratch, kill_at=change)
        return f"{done} at change {change} of a file"

    def check(self, rng: random.Random, scratch: Path) -> None:
        known, command = self._known[self._name], work.COMMANDS[self._name]
        if not self._ended.killed:
            work.whole(self._ended)  # it had ended before
        sandbox.in_child(lambda: work.check_files(scratch))
        self._check_whole(scratch, known)
        again = command.arguments
        if command.resumed and (scratch / command.resumed[0]).is_file():
            again = (*again, command.resumed[1])
        work.whole(sandbox.run(again, scratch))
        found = sandbox.hashes(scratch / work.OUT)
        different = {name for name, digest in known["same"].items() if found.get(name) != digest}
        left = found.keys() - set(known["files"])
        if different or left:
            raise Fault("differs", f"after the next run: other {different}, left over {left}")
        if sandbox.hashes(scratch) | self._inputs != sandbox.hashes(scratch):
            raise Fault("differs", "an input was changed")

    def _check_whole(self, scratch: Path, known: dict) -> None:
        """Every file that each run leaves with the same bytes has these, or those of before."""
        older = known["older"] if self._older else {}
        command = work.COMMANDS[self._name]
        found = sandbox.hashes(scratch / work.OUT)
        for name in command.same:
            if name in found and found[name] not in (known["same"][name], older.get(name)):
                raise Fault("half", f"{name} has neither its bytes of before nor those of after")
        model = scratch / work.OUT / command.model
        # Refused is right, too: of several files, some may be of before and some missing.
        if model.is_file() and work.result_in_child(model) not in (*known["results"], ""):
            raise Fault("wrong", "the model is a mixture: another result than before and after")
