"""Fields of the wrong type, in the dataclasses that are read from files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from sigcam.core.errors import SchemaError
from sigcam.core.spec import FidelityReport, OutputError, ParityReport, Spec
from sigcam.core.typed import check_types
from tests.support.tiny import tiny_spec


@dataclass
class Inner:
    share: float = 0.5


@dataclass
class Outer:
    count: int = 1
    share: float = 0.5
    name: str | None = None
    mode: Literal["a", "b"] = "a"
    sizes: tuple[tuple[int, int], ...] = ()
    inner: Inner | None = None
    named: Mapping[str, Inner] = field(default_factory=dict)
    flag: bool = False


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"count": -5}, {"share": 2}, {"name": "x"}, {"mode": "b"}, {"sizes": ((1, 2), (3, 4))},
        {"inner": Inner(1)}, {"named": {"a": Inner()}}, {"flag": True}, {"count": 2**53},
    ],
)  # fmt: skip
def test_what_is_right_passes(changes):
    check_types(Outer(**changes))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"count": "1"}, "count"), ({"count": 1.0}, "count"), ({"count": True}, "count"),
        ({"count": None}, "count"), ({"count": 10**30}, "count"), ({"share": "x"}, "share"),
        ({"share": float("nan")}, "share"), ({"share": float("inf")}, "share"),
        ({"share": False}, "share"), ({"share": 10**400}, "share"), ({"name": 3}, "name"),
        ({"mode": "c"}, "mode"), ({"mode": []}, "mode"), ({"sizes": 3}, "sizes"),
        ({"sizes": ((1, 2, 3),)}, "sizes"), ({"sizes": ((1, "2"),)}, "sizes"),
        ({"sizes": [(1, 2)]}, "sizes"), ({"inner": {}}, "inner"), ({"inner": Inner("x")}, "share"),
        ({"named": []}, "named"), ({"named": {"a": 1}}, "named"), ({"flag": 0}, "flag"),
        ({"named": {1: Inner()}}, "named"), ({"flag": "yes"}, "flag"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes, name):
    with pytest.raises(TypeError, match=f"^{name} must be "):
        check_types(Outer(**changes))


PARITY = ParityReport("torch", "ort", 1e-4, (1, 3), "noise", {"cams": OutputError(0, 0)})
FIDELITY = FidelityReport(
    precision="int8", backend="ort", images=9, calibration=9, seed=0, agreement=1, compared=9,
    mean_correlation=1, worst_correlation=1, mean_box_iou=None, min_agreement=0, min_correlation=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("method",), 5), (("nwc",), "yes"), (("signed",), 0), (("target_layers", 0), None),
        (("num_classes",), 10**400), (("class_names", 1), 7), (("method_options",), {"gamma": "x"}),
        (("method_options",), []), (("head_input",), 3), (("source", "architecture"), []),
        (("source", "versions"), 1), (("source", "branch_sha256"), 4.5),
        (("preprocessing", "mean", 0), 10**400), (("preprocessing", "height"), 10**30),
        (("feature_shapes", 0, 1), 7.5), (("parity", "tolerance"), "1e-4"),
        (("parity", "outputs", "cams", "max_abs"), [1]), (("parity", "batch_sizes", 0), "1"),
        (("fidelity", "agreement"), {}), (("fidelity", "kept_float"), [1]),
        (("fidelity", "mean_correlation"), "x"),
    ],
)  # fmt: skip
def test_every_field_of_a_spec(place, value):
    """Each of them was read, and failed where it was used."""
    data = json.loads(tiny_spec(parity=PARITY, fidelity=FIDELITY).to_json())
    Spec.from_json(json.dumps(data))
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    with pytest.raises(SchemaError, match="missing or wrong field"):
        Spec.from_json(json.dumps(data))
