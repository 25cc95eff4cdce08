"""The paper's tables: which artifacts each needs, and how it is laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.datasets.paper.figures import PaperFigures
from benchmarks.datasets.paper.recipe import Variant
from sigcam.demo.shift import SHIFTS
from sigcam.evaluate.reports.tables import markdown_table
from sigcam.evaluate.results.bootstrap import Comparison

METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")
"""The five of the paper's tables."""

Values = Mapping[str, Mapping[str, Comparison]]
"""Name of a variant to key of a metric to its value and its difference to the first variant."""

_AT_FIXED = {"top1_loc_best": "top1_loc", "gt_known_best": "gt_known"}
"""What the paper measures at a fixed threshold, and we beside it where its figures are shown."""

_FAITHFULNESS = ("average_drop", "increase")
_LOCATION = ("top1_cls", "top1_loc_best", "gt_known_best", "max_box_acc_v2", "pxap")
LABELS = {
    "average_drop": "Average Drop ↓",
    "increase": "% Increase ↑",
    "top1_cls": "Top-1 Cls ↑",
    "top1_loc": "Top-1 Loc, threshold 0.2 ↑",
    "top1_loc_best": "Top-1 Loc ↑",
    "gt_known": "GT-known Loc, threshold 0.2 ↑",
    "gt_known_best": "GT-known Loc ↑",
    "max_box_acc_v2": "MaxBoxAccV2 ↑",
    "pxap": "PxAP ↑",
}


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        number: of the paper's, or a name.
        title: what it shows.
        variants: label of each row to its artifact, for a number of classes.
        columns: keys of metrics.
    """

    number: str
    title: str
    variants: Callable[[int], dict[str, Variant]]
    columns: Sequence[str]

    def markdown(self, values: Values, num_classes: int, paper: PaperFigures | None = None) -> str:
        """Lays the table out; metrics that the data don't have are left out.

        Args:
            values: ours.
            num_classes: C of the data.
            paper: the paper's figures, which follow below each row of ours that has some.
        """
        rows = self.variants(num_classes)
        first = values[next(iter(rows.values())).name]
        columns = self._with_fixed() if paper is not None else self.columns
        keys = [key for key in columns if key in first]
        lines = []
        for label, variant in rows.items():
            found = values[variant.name]
            lines.append([label, *(_cell(found[key]) for key in keys)])
            theirs = {} if paper is None else paper.rows(self.number, variant, num_classes)
            for backbone, told in theirs.items():
                cells = [f"{told[key]:.2f}" if key in told else "" for key in keys]
                lines.append([f"paper, {backbone}", *cells])
        return markdown_table(["", *(LABELS[key] for key in keys)], lines)

    def _with_fixed(self) -> list[str]:
        """Returns the columns with those at the paper's threshold before those at the best."""
        columns = []
        for key in self.columns:
            columns += [_AT_FIXED[key], key] if key in _AT_FIXED else [key]
        return columns


def _cell(one: Comparison) -> str:
    value = one.metric
    return f"{value.value:.2f} ({value.low:.1f} to {value.high:.1f})"


def _with_and_without(methods: Sequence[str]) -> dict[str, Variant]:
    found = {}
    for method in methods:
        classic = Variant(method, "softmax", nwc=False)
        found[f"{method}, softmax branch"] = classic
        found[f"{method}, softmax branch, signed"] = replace(classic, signed=True)
        found[f"{method}, sigmoid branch"] = Variant(method, "sigmoid")
    return found


def _clamped(num_classes: int) -> dict[str, Variant]:
    del num_classes
    found = {
        f"{branch} branch, {'NWC' if nwc else 'no clamping'}": Variant("cam", branch, nwc)
        for branch in ("softmax", "centred", "sigmoid")
        for nwc in (False, True)
    }
    return {**found, **_SIGNED}


def _weighted(num_classes: int) -> dict[str, Variant]:
    most = num_classes - 1
    return {
        f"positive weight {text} = {value:g}": Variant("cam", positive_weight=float(value))
        for text, value in (("1", 1.0), ("(C-1)/2", most / 2), ("C-1", float(most)))
    }


_SIGNED = {"softmax branch, signed": Variant("cam", "softmax", nwc=False, signed=True)}
"""The other baseline: the weighted sum as it is."""


def _shifted(num_classes: int) -> dict[str, Variant]:
    del num_classes
    return {
        "softmax branch": Variant("cam", "softmax", nwc=False),
        **_SIGNED,
        **{
            f"softmax branch, {shift.text}": Variant("cam", "softmax", nwc=False, shift=shift)
            for shift in SHIFTS
        },
        **{
            f"centred, {shift.text}": Variant("cam", "centred", nwc=False, shift=shift)
            for shift in SHIFTS
        },
        "sigmoid branch": Variant("cam", "sigmoid"),
    }


_ALL = (
    Table(
        "1", "Faithfulness: five methods without and with the sigmoid branch",
        lambda _: _with_and_without(METHODS), _FAITHFULNESS,
    ),
    Table(
        "2", "Localisation: without and with the sigmoid branch",
        lambda _: _with_and_without(METHODS), _LOCATION,
    ),
    Table("4", "Negative-weight clamping (NWC)", _clamped, (*_FAITHFULNESS, *_LOCATION)),
    Table("5", "Positive weight of the loss", _weighted, (*_FAITHFULNESS, *_LOCATION)),
    Table(
        "shift", "A vector added to every class's weights, which changes no probability",
        _shifted, (*_FAITHFULNESS, *_LOCATION),
    ),
)  # fmt: skip

TABLES = {table.number: table for table in _ALL}
"""By their numbers in the paper, and the shifts of its Figure 1; Table 3 is latency,
which benchmarks/run.py measures."""
