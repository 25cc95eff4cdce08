"""The coverage benchmark's check on one small network for each kind of head."""

from __future__ import annotations

import pytest

pytest.importorskip("timm")

from benchmarks.coverage import check as coverage_check

pytestmark = pytest.mark.slow

NETWORKS = {
    "timm/resnet10t@64": "pool + linear",
    "squeezenet1_1@64": "conv + act + pool",
    "alexnet@64": "max pool + pool + MLP",
    "timm/dla46_c@64": "pool + conv",
    "timm/lcnet_035@64": "pool + conv + act + linear",
    "timm/test_convnext@64": "pool + norm + linear",
    "timm/efficientvit_b0@64": "pool + linear + norm + act + linear",
    "timm/test_vit@64": "class token + linear",
    "timm/test_vit3": "attention + linear",
    "timm/test_maxvit@160": "pool + linear",
}


@pytest.mark.parametrize(("entry", "head"), NETWORKS.items(), ids=list(NETWORKS))
def test_cams_agree_with_autograd(entry: str, head: str) -> None:
    name, _, size = entry.partition("@")
    outcome = coverage_check.check(name, int(size) if size else None, backbone=False)
    assert (outcome.status, outcome.reason) == ("agrees", "")
    assert outcome.head == head
    assert outcome.cams == 8
