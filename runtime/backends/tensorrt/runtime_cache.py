"""TensorRT-RTX's runtime cache, kept in a file: the kernels that it compiled for an engine.

TensorRT-RTX compiles an engine's kernels when a context is made and when shapes change, which
takes seconds. With the cache, the next process takes them from the file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sigcam.core.errors import StorageError
from sigcam.core.files import cache_folder, key_of, write_bytes
from sigcam.core.sidecar import Sidecar
from sigcam.kernels.calls import DeviceInfo

_LOG = logging.getLogger(__name__)


def cache_file(sidecar: Sidecar, gpu: DeviceInfo, folder: Path | None) -> Path:
    """Returns the file with the compiled kernels of an engine on a kind of GPU.

    Args:
        sidecar: what the engine is.
        gpu: the GPU that it runs on.
        folder: the caches' folder; None for the user's.

    Example:
        cache_file(read_sidecar("model.rtx.engine"), calls.device(0), None)
    """
    base = folder or cache_folder("tensorrt-rtx")
    return base / f"{key_of(sidecar.sha256, sidecar.version, gpu.name)[:32]}.cache"


class RuntimeCache:
    """The compiled kernels of one engine, shared by all of its contexts.

    TensorRT-RTX itself compares the file with its version, the GPU and the driver, and takes
    nothing of one that doesn't fit or is damaged; then the kernels are compiled anew, and the
    file is replaced.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._read = b""

    def use(self, config: Any) -> None:
        """Lets a context that is made with this runtime configuration use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                self._read = self._path.read_bytes()
            except OSError:  # it isn't there yet
                self._read = b""
            if self._read and not self._cache.deserialize(self._read):
                _LOG.info("%s is for another GPU, driver or TensorRT-RTX; replaced", self._path)
                self._read = b""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes the file, if kernels were compiled since; a folder that can't be written is told.

        A program that has what it came for mustn't fail for the sake of its next start.
        """
        if self._cache is None:
            return
        with memoryview(self._cache.serialize()) as data:
            compiled = bytes(data)
        self._cache = None
        if compiled in (b"", self._read):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, compiled)
        except (OSError, StorageError) as exc:
            _LOG.warning("the compiled kernels can't be kept in %s: %s", self._path, exc)
