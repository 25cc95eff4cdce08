"""The campaign itself: what it calls a fault, and that every item can be run again."""

import pytest

from tests.robustness.odd import NAME, WAYS
from tests.robustness.watch import run_item, run_items

MILD = "tests.robustness.odd:Mild"
OUTCOMES = {
    "works": "works", "refused": "refused", "traceback": "traceback", "hang": "hang",
    "crash": "crash", "exit": "crash", "memory": "traceback", "message": "message",
    "long": "message", "unnoticed": "unnoticed",
}  # fmt: skip
SEED = 4
"""With it, the first items end in every way there is."""


@pytest.mark.slow
def test_every_way_to_end_is_told_of_the_item_that_ended_so(tmp_path):
    found = list(run_items(NAME, SEED, range(24), tmp_path / "odd", workers=2))
    assert sorted(result.item for result in found) == list(range(24))
    assert {result.done: result.outcome for result in found} == OUTCOMES
    assert set(OUTCOMES) == set(WAYS)
    for result in found:
        again = run_item(MILD, SEED, result.item, tmp_path / "odd")
        assert again.done == result.done


def test_another_seed_gives_other_items(tmp_path):
    ways = [
        [run_item(MILD, seed, item, tmp_path / "odd").done for item in range(9)] for seed in (1, 2)
    ]
    assert ways[0] != ways[1]
