"""The backend "ort-tensorrt": ONNX Runtime on an NVIDIA GPU, with its TensorRT provider."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from sigcam.core.errors import ArtifactError, BackendUnavailableError, StorageError, UsageError
from sigcam.core.files import cache_folder
from sigcam.core.model_file import ModelFile
from sigcam.core.types import Array
from sigcam.runtime.backends.base import BackendOptions, Precision
from sigcam.runtime.backends.onnxruntime.common import (
    Provider,
    open_session,
    session_options,
)
from sigcam.runtime.backends.onnxruntime.cuda import OrtCudaBackend, cuda_provider
from sigcam.runtime.backends.onnxruntime.io_binding import DeviceStream
from sigcam.runtime.backends.onnxruntime.libraries import load_tensorrt

_LOG = logging.getLogger(__name__)

_NO_PROFILE = "no associated shape profiles"
"""What ONNX Runtime says where it divided the graph, and a part has inputs of its own.

Ranges can be named for the graph's inputs only.
"""

_OPTIONS = ("batch_size", "max_classes")
"""The options that say how many images and classes there may be at once, in the axes' order."""


class Largest(NamedTuple):
    """The largest shape of an input that an engine is built for; it begins with dynamic sizes.

    Attributes:
        dynamic: the most images, and where classes are asked for the most classes; from 1 on.
        fixed: the sizes after them.
    """

    dynamic: tuple[int, ...]
    fixed: tuple[int, ...]


Sizes = dict[str, Largest]
"""What an engine is built for, by the inputs' names; empty where it takes whatever comes."""


class OrtTensorrtBackend(OrtCudaBackend):
    """ONNX Runtime with its TensorRT provider.

    ONNX Runtime gives the CUDA provider the nodes that TensorRT doesn't take; `nodes` says how
    it divided the graph. The engine is built when the model is opened, which takes minutes, for
    1 to `batch_size` images and 1 to `max_classes` classes, and is kept in the cache folder.
    Without a `batch_size` it is built at the first run, and again for each shape outside of
    those seen.

    Products of float32 are rounded to TF32 on compute capability 8.0 and newer: TensorRT's
    default, for which ONNX Runtime has no option (microsoft/onnxruntime issue 26029). The
    environment variable NVIDIA_TF32_OVERRIDE=0, set before the process starts, turns it off.

    Attributes:
        sizes: the largest shapes that the engine takes; empty where it takes any.
    """

    name = "ort-tensorrt"
    understands = OrtCudaBackend.understands | {"precision", "cache"}
    provider: ClassVar[str] = "TensorrtExecutionProvider"
    extra: ClassVar[str] = "ort-tensorrt"

    def __init__(
        self, session: Any, stream: DeviceStream, run_options: Any, sizes: Sizes | None = None
    ) -> None:
        super().__init__(session, stream, run_options)
        self.sizes = sizes or {}

    @classmethod
    def _load_libraries(cls, ort: Any) -> None:
        super()._load_libraries(ort)
        load_tensorrt(ort, cls.provider)

    @classmethod
    def _loaded(
        cls, stream: DeviceStream, ort: Any, model: ModelFile, options: BackendOptions
    ) -> OrtTensorrtBackend:
        """Opens the model with an engine for the sizes that are asked for, if that can be."""
        sizes = sizes_for(ort, model, options)
        try:
            session = cls._built(ort, model, options, stream.handle, sizes)
        except (ArtifactError, BackendUnavailableError) as exc:
            if not sizes or _NO_PROFILE not in str(exc):
                raise
            _LOG.warning(
                "ONNX Runtime divides %s between TensorRT and others, so that no sizes can be "
                "set beforehand: an engine is built anew, which takes minutes, at each size "
                "outside of those seen; `sigcam build-engine` makes one engine of all of it",
                model.name,
            )
            sizes = {}
            session = cls._built(ort, model, options, stream.handle, sizes)
        return cls(session, stream, ort.RunOptions(), sizes)

    @classmethod
    def _built(
        cls,
        ort: Any,
        model: ModelFile,
        options: BackendOptions,
        stream: int,
        sizes: Sizes,
    ) -> Any:
        """Opens a session whose engine takes shapes up to these; empty: whatever comes."""
        base = options.cache or cache_folder("ort-tensorrt")
        folder = base / engine_key(model, ort.__version__, options.precision, sizes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(
                f"cannot make the engine cache {folder}: {exc.strerror or exc}; choose another "
                "folder with `cache`"
            ) from exc
        wishes = {
            "device_id": str(options.device),
            "user_compute_stream": str(stream),
            "trt_fp16_enable": "1" if options.precision == "fp16" else "0",
            "trt_bf16_enable": "1" if options.precision == "bf16" else "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(base),
            **profile(sizes),
        }
        providers: list[Provider] = [(cls.provider, wishes), cuda_provider(options, stream)]
        return cls._opened_with(ort, model, options, providers)

    def _checked(self, feeds: Mapping[str, Array], wanted: Sequence[str] | None) -> list[str]:
        chosen = super()._checked(feeds, wanted)
        self._check_sizes({name: array.shape for name, array in feeds.items()})
        return chosen

    def _check_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, largest in self.sizes.items():
            for option, size, high in zip(_OPTIONS, shapes[name], largest.dynamic):  # noqa: B905
                if size > high:
                    what = "images" if option == "batch_size" else "classes for each image"
                    raise UsageError(
                        f"the engine was built for {high} {what} at most, got {size}; ask for "
                        f"fewer at once, or load the model with {option}={size}"
                    )


def sizes_for(ort: Any, model: ModelFile, options: BackendOptions) -> Sizes:
    """Returns what an engine is to be built for: the sizes that are asked for.

    The inputs are those that ONNX Runtime finds in the file. Nothing is returned where no
    `batch_size` is asked for, or where an input has other dynamic axes than images and classes.

    Args:
        ort: the package onnxruntime.
        model: the model's file.
        options: what is asked of the backend.

    Example:
        sizes_for(ort, ModelFile("model.onnx"), BackendOptions(batch_size=8))
        # {"image": Largest((8,), (224, 224, 3)), "class_ids": Largest((8, 10), ())}
    """
    if options.batch_size is None:
        return {}
    most = tuple(getattr(options, name) for name in _OPTIONS)
    found: Sizes = {}
    looked_at = open_session(ort, model, session_options(ort, options), ["CPUExecutionProvider"])
    for value in looked_at.get_inputs():
        dynamic = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
        count = len(dynamic)
        if dynamic != list(range(count)) or count > len(most):
            return {}
        if count:
            found[value.name] = Largest(most[:count], tuple(value.shape[count:]))
    return found


def profile(sizes: Sizes) -> dict[str, str]:
    """Returns the settings of ONNX Runtime's TensorRT provider for these sizes.

    The engine is tuned for the largest batch, and for one class of each image.

    Example:
        >>> sizes = {"image": Largest((8,), (64, 64, 3)), "class_ids": Largest((8, 10), ())}
        >>> found = profile(sizes)
        >>> found["trt_profile_min_shapes"]
        'image:1x64x64x3,class_ids:1x1'
        >>> found["trt_profile_opt_shapes"]
        'image:8x64x64x3,class_ids:8x1'
    """
    if not sizes:
        return {}
    three: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    for name, (dynamic, fixed) in sizes.items():
        ones = (1,) * len(dynamic)
        for which, first in (("min", ones), ("opt", (dynamic[0], *ones[1:])), ("max", dynamic)):
            three[which].append(f"{name}:{'x'.join(map(str, first + fixed))}")
    return {f"trt_profile_{which}_shapes": ",".join(shapes) for which, shapes in three.items()}


def engine_key(model: ModelFile, version: str, precision: Precision, sizes: Sizes) -> str:
    """Returns the name of the folder with the engines of a model file.

    ONNX Runtime puts TensorRT's version and the GPU's architecture into the names of the
    engines, but knows a model by its name and nodes, not by its weights. So the folder's name
    has the hash of the file and of its weights beside it, ONNX Runtime's version, and the sizes:
    sessions for others would otherwise replace each other's engines.

    Args:
        model: the model's file.
        version: ONNX Runtime's version.
        precision: the type that the engines may compute in.
        sizes: what the engines are for; empty for whatever comes.

    Raises:
        ArtifactError: the file can't be read.

    Example:
        >>> sizes = {"image": Largest((8,), (64, 64, 3))}
        >>> engine_key(ModelFile(b""), "1.26.0", "fp16", sizes)[32:]
        '-ort1.26.0-fp16-8'
    """
    most = max((largest.dynamic for largest in sizes.values()), key=len, default=())
    ends = "".join(f"-{size}" for size in most)
    return f"{model.contents_sha256()[:32]}-ort{version}-{precision}{ends}"
