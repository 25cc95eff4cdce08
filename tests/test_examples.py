"""The examples in docstrings say what really comes out."""

from __future__ import annotations

import doctest
import importlib
import os
from pathlib import Path

import pytest

import sigcam

ROOT = Path(sigcam.__path__[0])


def modules_with_examples() -> list[str]:
    """Names of the modules that have examples; nothing is imported to find them."""
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(ROOT, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    found = [file for file in files if ">>> " in file.read_text(encoding="utf-8")]
    words = [("sigcam", *file.relative_to(ROOT).with_suffix("").parts) for file in found]
    return sorted(".".join(one).removesuffix(".__init__") for one in words)


@pytest.mark.slow
@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.attempted > 0
    assert result.failed == 0
