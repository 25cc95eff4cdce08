"""Makes sigcam importable from a checkout in which nothing is installed.

Folder X of the checkout is the package sigcam.X, and api/ is sigcam itself, so one package with
two folders to look into is all that it takes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def provide() -> None:
    """Makes `import sigcam` take this checkout, unless sigcam is installed."""
    if "sigcam" in sys.modules or importlib.util.find_spec("sigcam") is not None:
        return
    api = ROOT / "api"
    places = [str(api), str(ROOT)]
    spec = importlib.util.spec_from_file_location(
        "sigcam", api / "__init__.py", submodule_search_locations=places
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no package to import in {api}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sigcam"] = module
    spec.loader.exec_module(module)
