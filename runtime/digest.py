"""A model file's identity, for engines and caches that were made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sigcam.runtime.errors import ArtifactError

_BLOCK = 1 << 20


def model_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a model file and of its weights in the file beside it.

    Raises:
        ArtifactError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for part in (path, path.with_name(path.name + ".data")):
            if part == path or part.is_file():
                with part.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return digest.hexdigest()
