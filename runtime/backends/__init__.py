"""The engines by name. A new engine is one file, one line here and one extra.

The values are "module:class" strings, so that listing the engines imports none.
"""

from __future__ import annotations

import pkgutil

from sigcam.runtime.backends.base import Backend
from sigcam.runtime.errors import UsageError

BACKENDS: dict[str, str] = {
    "ort": "sigcam.runtime.backends.ort:OrtBackend",
}

AUTO_ORDER: tuple[str, ...] = ("ort",)
"""Which engines `backend="auto"` tries, the preferred one first."""


def backend_class(name: str) -> type[Backend]:
    """The class of an engine, imported on demand (the engine itself isn't).

    Raises:
        UsageError: no engine of that name.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")
    found: type[Backend] = pkgutil.resolve_name(BACKENDS[name])
    return found
