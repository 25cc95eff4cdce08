"""The engines by name. A new engine is one file, one line here and one extra.

The values are "module:class" strings, so that listing the engines imports none.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.errors import BackendUnavailableError, UsageError

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


def open_backend(path: Path, name: str, options: BackendOptions) -> Backend:
    """Opens a model file in the engine of that name; "auto" takes the first that is installed.

    Raises:
        UsageError: no engine of that name.
        BackendUnavailableError: the engine isn't installed, or none is.
        ArtifactError: the engine refuses the file.
    """
    if name != "auto":
        return backend_class(name).open(path, options)
    missing = []
    for candidate in AUTO_ORDER:
        try:
            return backend_class(candidate).open(path, options)
        except BackendUnavailableError as exc:  # noqa: PERF203 (there are few engines)
            missing.append(exc)
    raise BackendUnavailableError(
        "no engine is installed: " + "; ".join(map(str, missing))
    ) from missing[0]
