"""A folder of models that OpenVINO compiled."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.files import key_of, write_bytes
from sigcam.core.model_file import ModelFile
from sigcam.core.types import Array

_MAGIC = b"\nsigcam openvino 1 "
_FOOT = len(_MAGIC) + 64

_RULES = "weights apart"
"""What we change in every model before it is compiled; other rules make other entries."""


class ModelCache:
    """A folder of compiled models.

    OpenVINO has a cache of its own (CACHE_DIR). It compares no checksums: eight bytes changed in
    a file that it had written changed heatmaps without any message (seen in 2026.4). And it
    knows a model by its path and time, not by the weights in a file beside it. So files are
    ours: what OpenVINO exports, and after it a line with its SHA-256.

    A file is mapped into memory, where the model's weights stay. Loading EfficientNet-Lite0
    then takes 0.6 times the processor time of compiling it. ResNet-50 takes 1.05 times, most of
    it for the checksum of its weights.

    Args:
        folder: where the files lie; it is made when it is needed.
        core: OpenVINO's Core.
        version: OpenVINO's version.
    """

    def __init__(self, folder: Path, core: Any, version: str) -> None:
        self._folder = folder
        self._core = core
        self._version = version

    def load(
        self,
        model: ModelFile,
        config: Mapping[str, str],
        variant: str,
        compile_model: Callable[[], Any],
    ) -> tuple[Any, Array | None]:
        """Returns the compiled model, from the folder or compiled and written to it.

        An entry that is damaged, or that OpenVINO doesn't take, causes a warning, and is made
        again and replaced.

        Args:
            model: the model's file.
            config: the properties that the model is compiled with.
            variant: what is changed in the model before that, in words.
            compile_model: compiles the model.

        Returns:
            The compiled model; and if it came from the folder, the memory that must be kept as
            long as the model is.

        Raises:
            ArtifactError: the model can't be read.
            StorageError: the folder can't be written.
        """
        entry = self._folder / f"{self._key(model, config, variant)}.blob"
        if entry.is_file():
            try:
                return self._read(entry, config)
            except Exception as exc:
                warnings.warn(
                    f"the compiled model {entry} can't be used ({one_line(exc)}): the model is "
                    "compiled again and the file replaced",
                    RuntimeWarning,
                    stacklevel=4,
                )
        compiled = compile_model()
        blob = compiled.export_model().getvalue()
        write_bytes(entry, blob + _foot(blob))
        return compiled, None

    def _read(self, entry: Path, config: Mapping[str, str]) -> tuple[Any, Array]:
        """Imports an entry; returns the model and the memory that it lies in."""
        import openvino

        # Read, not mapped: whoever overwrites the file would change the weights that are in use.
        memory = np.fromfile(entry, np.uint8)
        blob = memory[:-_FOOT]
        if memory[-_FOOT:].tobytes() != _foot(blob.data):
            raise ValueError("its contents don't match its checksum")
        tensor = openvino.Tensor(blob, shared_memory=True)
        return self._core.import_model(tensor, "CPU", dict(config)), memory

    def _key(self, model: ModelFile, config: Mapping[str, str], variant: str) -> str:
        """Returns an entry's name, which depends on all that the compiled model depends on."""
        device = [
            str(self._core.get_property("CPU", name))
            for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        ]
        settings = [f"{name}={value}" for name, value in sorted(config.items())]
        made_by = [self._version, _RULES, platform.machine(), *device]
        return key_of(model.contents_sha256(), variant, *made_by, *settings)


def one_line(exc: Exception) -> str:
    """Returns an error of OpenVINO's in one line; it has one for each function above it.

    Example:
        >>> one_line(RuntimeError("Exception from core.cpp:95:    no such model"))
        'Exception from core.cpp:95: no such model'
    """
    return " ".join(str(exc).split())


def _foot(blob: bytes | memoryview) -> bytes:
    """Returns the last line of an entry."""
    return _MAGIC + hashlib.sha256(blob).hexdigest().encode()
