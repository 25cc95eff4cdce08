"""A short run of every part of the campaign; `make fuzz` is the long one."""

import pytest

from tests.robustness import results
from tests.robustness.targets import TARGETS, corpus_name
from tests.robustness.threads import run_threads
from tests.robustness.watch import run_items

pytestmark = pytest.mark.slow

SHORT = {
    "images": 300, "artifacts": 60, "specs": 150, "sidecars": 150, "branches": 60,
    "checkpoints": 60, "onnx": 60, "datasets": 200, "requests": 300, "kills": 4, "disks": 6,
}  # fmt: skip
SEED = 2024


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """Where the whole files lie that are damaged; some kinds share them."""
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("part", TARGETS)
def test_no_item_ends_in_a_fault(part, whole_files):
    folder = whole_files / corpus_name(part)
    found = list(run_items(part, SEED, range(SHORT[part]), folder, workers=1))
    assert [result for result in found if not result.good] == []
    outcomes = {result.outcome for result in found}
    if part != "disks":  # a command whose disk is full does nothing else
        assert "works" in outcomes, "nothing but refusals: the campaign damages too much"
    if part != "kills":
        assert "refused" in outcomes


def test_eight_threads_give_what_one_gives_and_memory_is_flat(tmp_path):
    found = run_threads(tmp_path, calls=150)
    assert found.good, found


def test_the_page_holds_what_was_counted():
    records = results.read_records()
    assert records.keys() == results.WHAT.keys()
    made = results.table(records)
    assert made in results.PAGE.read_text()
