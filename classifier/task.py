"""Decides what a classifier's logits mean: one class an image, several, or yes and no."""

from __future__ import annotations

from collections.abc import Sequence

from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import Task

_BY_SQUASHING: dict[str | None, Task] = {
    "softmax": "single-label",
    "log_softmax": "single-label",
    "sigmoid": "multi-label",
}


def task_of(asked: Task | None, num_logits: int, squashing: str | None = None) -> Task:
    """Returns the task of a network, and refuses one that contradicts it.

    A network with one logit is binary. Otherwise the function that squashed the model's logits
    tells; where there is none, the task is that which was asked for, or single-label.

    Args:
        asked: what the user says; None for nothing.
        num_logits: the logits of the network, before one becomes two.
        squashing: "softmax", "log_softmax" or "sigmoid" where the model ended in that function,
            which was taken off; None where it didn't.

    Raises:
        UsageError: another task than the network's was asked for.
        ModelError: a softmax over one logit.

    Example:
        >>> task_of(None, 20), task_of(None, 20, "sigmoid"), task_of(None, 1)
        ('single-label', 'multi-label', 'binary')
        >>> task_of("multi-label", 20)
        'multi-label'
    """
    if num_logits == 1:
        if squashing in ("softmax", "log_softmax"):
            raise ModelError(
                f"the model ends in {squashing} over one logit, which says the same for every "
                "image; give it two logits, or end it in that one logit"
            )
        if asked not in (None, "binary"):
            raise UsageError(
                f"the model has one logit, whose task is binary, not {asked}; leave the task out, "
                "or give a model with a logit for each class"
            )
        return "binary"
    if asked == "binary":
        raise UsageError(
            f"the task binary is for a model with one logit, this one has {num_logits}; take "
            "single-label where exactly one class is right, or multi-label where any number is"
        )
    found = _BY_SQUASHING.get(squashing)
    if asked is not None and found is not None and asked != found:
        raise UsageError(
            f"the task {asked} was asked for, but the model ends in {squashing}, so it is "
            f"{found}; leave the task out"
        )
    return asked or found or "single-label"


def names_for(task: Task, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names; the one name of a binary network becomes two.

    Args:
        task: the task.
        names: the names that are known.

    Example:
        >>> names_for("binary", ["pneumonia"]), names_for("single-label", ["cat", "dog"])
        (('not pneumonia', 'pneumonia'), ('cat', 'dog'))
    """
    if task == "binary" and len(names) == 1:
        return f"not {names[0]}", names[0]
    return tuple(names)
