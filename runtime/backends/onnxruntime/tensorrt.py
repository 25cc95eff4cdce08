"""The backend "ort-tensorrt": ONNX Runtime on an NVIDIA GPU, with its TensorRT provider."""

from __future__ import annotations

from typing import Any, ClassVar

from sigcam.core.errors import StorageError
from sigcam.core.files import cache_folder
from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import BackendOptions, Precision
from sigcam.runtime.backends.onnxruntime.common import Provider
from sigcam.runtime.backends.onnxruntime.cuda import OrtCudaBackend, cuda_provider


class OrtTensorrtBackend(OrtCudaBackend):
    """ONNX Runtime with its TensorRT provider.

    ONNX Runtime gives the CUDA provider the nodes that TensorRT doesn't take; `nodes` says how
    it divided the graph. Engines are built at the first run with a shape, which takes minutes,
    and are kept in the cache folder.

    Products of float32 are rounded to TF32 on compute capability 8.0 and newer: TensorRT's
    default, for which ONNX Runtime has no option (microsoft/onnxruntime issue 26029). The
    environment variable NVIDIA_TF32_OVERRIDE=0, set before the process starts, turns it off.
    """

    name = "ort-tensorrt"
    understands = frozenset({"threads", "spinning", "device", "precision", "cache"})
    provider: ClassVar[str] = "TensorrtExecutionProvider"

    @classmethod
    def _providers(
        cls, ort: Any, model: ModelFile, options: BackendOptions, stream: int
    ) -> list[Provider]:
        base = options.cache or cache_folder("ort-tensorrt")
        folder = base / engine_key(model, ort.__version__, options.precision)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(
                f"cannot make the engine cache {folder}: {exc.strerror or exc}; choose another "
                "folder with `cache`"
            ) from exc
        settings = {
            "device_id": str(options.device),
            "user_compute_stream": str(stream),
            "trt_fp16_enable": "1" if options.precision == "fp16" else "0",
            "trt_bf16_enable": "1" if options.precision == "bf16" else "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(base),
        }
        return [(cls.provider, settings), cuda_provider(options, stream)]


def engine_key(model: ModelFile, version: str, precision: Precision) -> str:
    """Returns the name of the folder with the engines of a model file.

    ONNX Runtime puts TensorRT's version and the GPU's architecture into the names of the
    engines, but knows a model by its name and nodes, not by its weights. So the folder's name
    has the hash of the file and of its weights beside it, and ONNX Runtime's version.

    Args:
        model: the model's file.
        version: ONNX Runtime's version.
        precision: the type that the engines may compute in.

    Raises:
        ArtifactError: the file can't be read.

    Example:
        >>> engine_key(ModelFile(b""), "1.26.0", "fp16")[32:]
        '-ort1.26.0-fp16'
    """
    return f"{model.contents_sha256()[:32]}-ort{version}-{precision}"
