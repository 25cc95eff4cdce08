"""Loads a classifier's weights from a file, and says which of its tensors were taken.

A file may hold several sets of tensors (`sigcam.classifier.zoo.checkpoint`), and their names may
begin with what a wrapper put before them: "module.", "_orig_mod.", "model.", or several of these.
The set and the beginning are those with which the names are the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sigcam.classifier.graph import give_tensors
from sigcam.classifier.zoo.checkpoint import TensorSet, few, read_checkpoint
from sigcam.core.errors import ModelError

_AUXILIARY = ("AuxLogits", "aux1", "aux2")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
"""What the names of a model begin with that only wraps another one."""
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow", "polyak", "teacher"}
"""Words by which averages over the training are known, beside the weights themselves."""

SIGMOID_NAMES = {"fc2": "fc", "classifier_2": "classifier", "SPG_A4_2": "SPG_A4"}
"""The sigmoid branch's layer in checkpoints of the paper's code, and the head it is a clone of."""


@dataclass(frozen=True)
class LoadedWeights:
    """What was taken of a file of weights.

    Attributes:
        sigmoid_tensors: the sigmoid branch's tensors by the names of the classifier's head, so
            "fc2.weight" as "fc.weight"; None if the file has none.
        notes: sentences that say what was taken, where that wasn't all of the file as it is.
    """

    sigmoid_tensors: dict[str, Tensor] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A set of tensors of the file, without a common beginning of their names."""

    keys: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    left_out: tuple[str, ...]

    @property
    def label(self) -> str:
        """Returns what chooses this set behind the file's name and a "#"."""
        return "/".join([*self.keys, *([self.prefix] if self.prefix else [])])

    @property
    def is_average(self) -> bool:
        """Returns whether its keys or prefix name an average over the training."""
        return not _AVERAGES.isdisjoint(re.split(r"[./_]", self.label.lower()))

    def described(self) -> str:
        """Returns what was taken, in words."""
        where = "".join(f"[{key!r}]" for key in self.keys)
        said = f"took {where}" if where else "took its tensors"
        said += f", names without {self.prefix!r}" if self.prefix else ""
        return said + (f", left out {few(list(self.left_out))}" if self.left_out else "")


def load_weights(model: nn.Module, path: Path, chosen: str | None = None) -> LoadedWeights:
    """Loads a file of weights into a model.

    A checkpoint of the paper's own code holds two heads: the classifier's, and beside it
    the sigmoid branch's under a name of its own (`SIGMOID_NAMES`). The latter is taken out
    and returned, if the model has no such layer itself.

    Where several sets fit the model, the weights themselves are taken rather than averages of
    them over the training (EMA, SWA), and a note says so.

    Args:
        model: the classifier; it is changed only if the file fits.
        path: the file or folder, as `read_checkpoint` takes it. The state dict may lie in it
            under keys ("state_dict", "model", "net", "model_ema", ...), and its names may begin
            with a common prefix ("module.", "_orig_mod.", "model.", ...). What has no such
            prefix is then left out (a loss's weights in a checkpoint of Lightning, the
            `n_averaged` of an averaged model). Auxiliary training heads (torchvision's
            InceptionV3 and GoogLeNet) are left out if the model has none.
        chosen: the keys, joined by "/", of the set to take; None to find it.

    Returns:
        The sigmoid branch, if there is one, and what was taken.

    Raises:
        ModelError: the file is missing or damaged; objects that would have to be unpickled;
            other names or shapes than the model's, of either head; several sets that fit, or
            none under `chosen`; values that aren't finite.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> state = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": state}, Path(folder, "model.pth"))
        ...     loaded = load_weights(model, Path(folder, "model.pth"))
        >>> model.weight.tolist(), loaded.notes
        ([[1.0, 1.0]], ("model.pth: took ['state_dict'], names without 'module.'",))
    """
    own = _wrapper_prefix(model.state_dict())
    wanted = {name.removeprefix(own): value for name, value in model.state_dict().items()}
    taken, others = _choose(path, read_checkpoint(path), wanted, chosen)
    state, branch = _with_branch_apart(path, taken.state, wanted)
    give_tensors(model, {own + name: value for name, value in state.items()})
    if branch is not None:
        branch = {own + name: value for name, value in branch.items()}
    return LoadedWeights(branch, _notes(path, taken, others, own))


def _wrapper_prefix(state: Mapping[str, Tensor]) -> str:
    """Returns what all names begin with because their model only wraps another one."""
    prefix = ""
    while state:
        longer = [prefix + w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in state)]
        if not longer:
            break
        prefix = longer[0]
    return prefix


def _choose(
    path: Path, found: Sequence[TensorSet], wanted: Mapping[str, Tensor], chosen: str | None
) -> tuple[_Candidate, list[_Candidate]]:
    """Returns the set to take, and the others that would have fitted."""
    candidates = [one for each in found for one in _candidates(each, wanted)]
    if chosen is not None:
        candidates = _named(path, candidates, chosen)
    fitting = [c for c in candidates if not any(_misfit(c.state, wanted))]
    if not fitting:
        nearest = max(candidates, key=lambda c: (_overlap(c.state, wanted), len(c.prefix)))
        raise ModelError(_misfit_text(path, *_misfit(nearest.state, wanted)))
    plain = [c for c in fitting if not c.is_average] or fitting
    if len(plain) > 1 and not all(_equal(plain[0].state, other.state) for other in plain[1:]):
        labels = [f"{path}#{c.label}" for c in plain]
        raise ModelError(f"{path} holds several sets of weights that fit; name one: {few(labels)}")
    return plain[0], [c for c in fitting if c is not plain[0]]


def _named(path: Path, candidates: list[_Candidate], chosen: str) -> list[_Candidate]:
    """Returns the candidates that the user's words mean: exactly, or by one of their keys."""
    exact = [c for c in candidates if chosen in (c.label, "/".join(c.keys))]
    named = exact or [c for c in candidates if chosen in c.keys]
    if not named:
        there = sorted({"/".join(c.keys) or c.label or "its top" for c in candidates})
        raise ModelError(f"{path} holds no weights under {chosen!r}; it has {few(there)}")
    return named


def _overlap(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> int:
    return len(state.keys() & wanted.keys())


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in state)


def _candidates(found: TensorSet, wanted: Mapping[str, Tensor]) -> list[_Candidate]:
    """Makes a candidate of a set for each prefix behind which its names may be the model's."""
    # The model's longest name stands in every set that fits, behind the prefix.
    anchor = max(_needed(wanted), key=len, default="")
    prefixes = {
        name.removesuffix(anchor)
        for name in found.tensors
        if name == anchor or name.endswith(f".{anchor}")
    }
    return [
        _without(found, prefix)
        for prefix in sorted({*prefixes, _wrapper_prefix(found.tensors), ""})
    ]


def _without(found: TensorSet, prefix: str) -> _Candidate:
    state = {
        name.removeprefix(prefix): value
        for name, value in found.tensors.items()
        if name.startswith(prefix)
    }
    rest = [name for name in found.tensors if not name.startswith(prefix)]
    return _Candidate(found.keys, prefix, state, (*rest, *found.others))


def _notes(
    path: Path, taken: _Candidate, others: Sequence[_Candidate], own: str
) -> tuple[str, ...]:
    notes = []
    if taken.keys or taken.left_out or taken.prefix not in ("", own):
        notes.append(f"{path.name}: {taken.described()}")
    labels = [
        f"{path.name}#{other.label}" for other in others if not _equal(other.state, taken.state)
    ]
    if labels:
        notes.append(f"{path.name} holds other weights that fit, too: give {' or '.join(labels)}")
    return tuple(notes)


def _with_branch_apart(
    path: Path, state: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Takes the sigmoid branch out of a checkpoint, and checks shapes and values of both."""
    state = _without_auxiliary(state, wanted)
    name = _branch_of(state, wanted)
    if name is None:
        _check_values(path, state, wanted)
        return state, None
    head = SIGMOID_NAMES[name]
    branch = _part(state, name)
    state = {n: value for n, value in state.items() if n not in branch}
    _check_values(path, state, wanted)
    clone = {name + n.removeprefix(head): value for n, value in _part(wanted, head).items()}
    missing, extra = sorted(clone.keys() - branch.keys()), sorted(branch.keys() - clone.keys())
    if missing or extra:
        raise ModelError(_misfit_text(path, missing, extra))
    _check_values(path, branch, clone)
    return state, {head + n.removeprefix(name): value for n, value in branch.items()}


def _branch_of(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the sigmoid branch beside the head; None without one."""
    for name, head in SIGMOID_NAMES.items():
        if _part(wanted, head) and _part(state, name) and not _part(wanted, name):
            return name
    return None


def _part(state: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(f"{layer}.")}


def _without_auxiliary(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    surplus = [layer for layer in _AUXILIARY if not _part(wanted, layer)]
    left_out = {name for layer in surplus for name in _part(state, layer)}
    return {name: value for name, value in state.items() if name not in left_out}


def _needed(wanted: Mapping[str, Tensor]) -> set[str]:
    # Old checkpoints lack the counters of batch norm, which inference doesn't use.
    return {name for name in wanted if not name.endswith("num_batches_tracked")}


def _misfit(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Lists the names that the model lacks and those that it doesn't know."""
    state = _without_auxiliary(state, wanted)
    branch = _branch_of(state, wanted)
    names = state.keys() - (_part(state, branch).keys() if branch else set())
    return sorted(_needed(wanted) - names), sorted(names - wanted.keys())


def _misfit_text(path: Path, missing: list[str], extra: list[str]) -> str:
    return (
        f"{path} doesn't fit the model: missing {few(missing)}, unexpected {few(extra)}; "
        "look at the architecture and the number of classes"
    )


def _check_values(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuses shapes other than the model's, and values that aren't finite."""
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{path} doesn't fit the model: {name} is {list(value.shape)}, the model's is "
                f"{list(wanted[name].shape)}; look at the architecture and the number of classes"
            )
        if not _all_finite(value):
            raise ModelError(f"{name} in {path} has values that are not finite")


def _all_finite(value: Tensor) -> bool:
    # What isn't finite makes the sum not finite; that is quicker than to look at each value,
    # which is needed only where finite values overflow.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
