"""TensorRT's timing cache, kept in a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.files import write_bytes
from sigcam.runtime.backends.tensorrt.package import TensorRTPackage


class TimingCache:
    """The timings of one build, read from a file before it and written to the file after it.

    Args:
        path: the file; it need not exist yet.
        package: the TensorRT that builds.
        config: the builder's configuration, which gets the timings.

    Raises:
        UsageError: the package is TensorRT-RTX, whose builds time nothing (its release notes
            since 1.1: the cache has no effect, and asks for a GPU).
        ArtifactError: the file can't be read.
    """

    def __init__(self, path: Path, package: TensorRTPackage, config: Any) -> None:
        if package.is_rtx:
            raise UsageError(
                "a timing cache has no effect with the package 'tensorrt_rtx', which chooses "
                "its kernels when an engine is loaded; leave --timing-cache out"
            )
        self._path = path
        self._config = config
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as exc:
            raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc
        self._cache = config.create_timing_cache(data)
        if self._cache is None or not config.set_timing_cache(self._cache, False):
            # Of another version or GPU, or no cache at all. Timings can be had anew, so that
            # is no reason not to build; the file is replaced by one that fits.
            warnings.warn(
                f"{path} is not a timing cache of this TensorRT {package.version} and this GPU; it "
                "isn't used, and will be replaced",
                stacklevel=2,
            )
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def save(self) -> None:
        """Writes the timings, those of this build among them.

        Raises:
            StorageError: the file can't be written.
        """
        with memoryview(self._config.get_timing_cache().serialize()) as data:
            write_bytes(self._path, data)
