"""The paper's tables: which artifacts each needs, and how it is laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.datasets.paper.recipe import Variant
from sigcam.demo.shift import SHIFTS
from sigcam.evaluate.reports.tables import markdown_table
from sigcam.evaluate.results.bootstrap import Comparison

METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")
"""The five of the paper's tables."""

Values = Mapping[str, Mapping[str, Comparison]]
"""Name of a variant to key of a metric to its value and its difference to the first variant."""

_FAITHFULNESS = ("average_drop", "increase")
_LOCATION = ("top1_cls", "top1_loc_best", "gt_known_best", "max_box_acc_v2", "pxap")
LABELS = {
    "average_drop": "Average Drop ↓",
    "increase": "% Increase ↑",
    "top1_cls": "Top-1 Cls ↑",
    "top1_loc_best": "Top-1 Loc ↑",
    "gt_known_best": "GT-known Loc ↑",
    "max_box_acc_v2": "MaxBoxAccV2 ↑",
    "pxap": "PxAP ↑",
}


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: what it shows.
        variants: label of each row to its artifact, for a number of classes.
        columns: keys of metrics.
    """

    title: str
    variants: Callable[[int], dict[str, Variant]]
    columns: Sequence[str]

    def markdown(self, values: Values, num_classes: int) -> str:
        """The table; metrics that the data don't have are left out."""
        rows = self.variants(num_classes)
        first = values[next(iter(rows.values())).name]
        keys = [key for key in self.columns if key in first]
        lines = []
        for label, variant in rows.items():
            found = values[variant.name]
            lines.append([label, *(_cell(found[key]) for key in keys)])
        return markdown_table(["", *(LABELS[key] for key in keys)], lines)


def _cell(one: Comparison) -> str:
    value = one.metric
    return f"{value.value:.2f} ({value.low:.1f} to {value.high:.1f})"


def _with_and_without(methods: Sequence[str]) -> dict[str, Variant]:
    return {
        f"{method}, {branch} branch": Variant(
            method, branch, nwc=None if branch == "sigmoid" else False
        )
        for method in methods
        for branch in ("softmax", "sigmoid")
    }


def _clamped(num_classes: int) -> dict[str, Variant]:
    del num_classes
    return {
        f"{branch} branch, {'NWC' if nwc else 'no clamping'}": Variant("cam", branch, nwc)
        for branch in ("softmax", "sigmoid")
        for nwc in (False, True)
    }


def _weighted(num_classes: int) -> dict[str, Variant]:
    most = num_classes - 1
    return {
        f"positive weight {text} = {value:g}": Variant("cam", positive_weight=float(value))
        for text, value in (("1", 1.0), ("(C-1)/2", most / 2), ("C-1", float(most)))
    }


def _shifted(num_classes: int) -> dict[str, Variant]:
    del num_classes
    return {
        "softmax branch": Variant("cam", "softmax", nwc=False),
        **{
            f"softmax branch, {shift.text}": Variant("cam", "softmax", nwc=False, shift=shift)
            for shift in SHIFTS
        },
        "sigmoid branch": Variant("cam", "sigmoid"),
    }


TABLES = {
    "1": Table(
        "Faithfulness: five methods without and with the sigmoid branch",
        lambda _: _with_and_without(METHODS), _FAITHFULNESS,
    ),
    "2": Table(
        "Localisation: without and with the sigmoid branch",
        lambda _: _with_and_without(METHODS), _LOCATION,
    ),
    "4": Table("Negative-weight clamping (NWC)", _clamped, (*_FAITHFULNESS, *_LOCATION)),
    "5": Table("Positive weight of the loss", _weighted, (*_FAITHFULNESS, *_LOCATION)),
    "shift": Table(
        "A vector added to every class's weights, which changes no probability",
        _shifted, (*_FAITHFULNESS, *_LOCATION),
    ),
}  # fmt: skip
"""By their numbers in the paper, and the shifts of its Figure 1; Table 3 is latency,
which benchmarks/run.py measures."""
