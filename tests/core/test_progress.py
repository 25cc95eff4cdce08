"""Bars: where they are shown, what they count, and what reports of passes become."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from sigcam.core.progress import Bar, reporter, write_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Put in place by the tests themselves: pytest's own capture replaces what a fixture has set.
FILES = pytest.mark.parametrize("file", [io.StringIO, Terminal])


@FILES
@pytest.mark.parametrize("shown", [True, False, None])
def test_where_a_bar_is_shown(file, shown, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := file())
    with Bar(2, unit="image", label="looking", shown=shown) as bar:
        bar.advance()
        bar.note("a note", at_once=True)
        bar.advance_to(2)
    bar.close()
    text = stderr.getvalue()
    if stderr.isatty() if shown is None else shown:
        for part in ("looking", "2/2", "a note", "image"):
            assert part in text
    else:
        assert text == ""


def test_what_an_earlier_run_did(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := Terminal())
    with Bar(10, unit="image", done=4) as bar:
        bar.advance_to(5)
        bar.advance(5)
    assert "4/10" in stderr.getvalue()
    assert "10/10" in stderr.getvalue()


@FILES
def test_a_bar_for_each_image_of_several_passes(file, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := file())
    report = reporter(True, "scorecam")
    for _ in range(2):
        for done in range(1, 4):
            report(done, 3)
    report(1, 1)
    text = stderr.getvalue()
    assert text.count("0/3") == 2
    assert "scorecam" in text
    assert "/1 " not in text


@FILES
def test_other_reports(file, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := file())
    reporter(False, "quiet")(1, 2)
    calls = []
    reporter(lambda done, total: calls.append((done, total)), "mine")(1, 2)
    assert calls == [(1, 2)]
    assert stderr.getvalue() == ""


@FILES
def test_a_line(file, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := file())
    write_line("waiting")
    assert stderr.getvalue() == "waiting\n"


def test_a_hidden_bar_imports_nothing() -> None:
    code = (
        "import sys; from sigcam.core.progress import Bar\n"
        "with Bar(3, unit='image') as bar: bar.advance()\n"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
