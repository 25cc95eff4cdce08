"""The guard, with timings that are made up."""

import itertools

import pytest


@pytest.fixture
def budget(monkeypatch):
    from benchmarks import budget

    monkeypatch.setattr(budget, "PAUSE", 0.0)
    return budget


def cases(budget, *ratios):
    """A budget of 1.05 whose tries give these ratios, the last one for ever."""
    found = itertools.chain(ratios, itertools.repeat(ratios[-1]))
    return [(budget.Budget("network", "cam", 1.05), lambda: next(found))]


def test_an_expensive_map_fails(budget):
    said = []
    assert len(budget.guard(cases(budget, 1.2), said.append)) == 1
    assert said == [
        "OVER  network, cam: map over classification only, backend only: 1.200 "
        "(budget 1.05 + 0.02 noise)"
    ]


def test_a_cheap_map_passes_at_the_first_try(budget):
    tries = []

    def sample():
        tries.append(1)
        return 1.06

    assert budget.guard([(budget.Budget("n", "cam", 1.05), sample)], str) == []
    assert len(tries) == 1


def test_one_quiet_try_is_enough_and_a_last_one_counts(budget):
    assert budget.guard(cases(budget, 1.5, 1.4, 1.3, 1.06), str) == []
    assert len(budget.guard(cases(budget, 1.5, 1.4, 1.3, 1.08, 1.0), str)) == 1


def test_main_exits_with_1_only_when_a_map_is_too_expensive(budget, monkeypatch, capsys):
    for ratio, code in ((1.01, 0), (1.5, 1)):
        monkeypatch.setattr(budget, "sampler", lambda *args, ratio=ratio: lambda: ratio)
        assert budget.main() == code
    assert "OVER" in capsys.readouterr().out


def test_budgets_are_for_three_small_networks(budget):
    assert len({one.network for one in budget.BUDGETS}) == 3
    assert {one.method for one in budget.BUDGETS} >= {"cam", "gradcam"}
    assert all(1 < one.ratio <= 1.15 for one in budget.BUDGETS)
