"""docs/console.py says which pages it runs, and never passes one that it doesn't."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.docs.test_python_blocks import console


@pytest.mark.parametrize("pages", [["docs/serving.md"], ["README.md", "docs/nothing.md"]])
def test_a_page_whose_commands_are_not_run_is_refused(pages):
    found = CliRunner().invoke(console().main, ["--check", *pages])
    assert found.exit_code == 2
    assert f"no commands of {pages[-1]} are run; the pages are README.md" in found.output
