"""The backends by name. A new backend is one folder, one line here and one extra.

The values are "module:class" strings, so that listing the backends imports none.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from sigcam.core.artifact import is_engine
from sigcam.core.errors import BackendUnavailableError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import Backend, BackendOptions

BACKENDS: dict[str, str] = {
    "ort": "sigcam.runtime.backends.onnxruntime.cpu:OrtBackend",
    "openvino": "sigcam.runtime.backends.openvino.backend:OpenVinoBackend",
    "ort-cuda": "sigcam.runtime.backends.onnxruntime.cuda:OrtCudaBackend",
    "tensorrt": "sigcam.runtime.backends.tensorrt.backend:TensorRtBackend",
    "ort-tensorrt": "sigcam.runtime.backends.onnxruntime.tensorrt:OrtTensorrtBackend",
}

AUTO_ORDER: tuple[str, ...] = ("ort-cuda", "ort", "openvino")
"""The backends that `backend="auto"` tries, the preferred one first.

The GPU comes first, where ONNX Runtime's build, the driver and a device are there;
`Session.backend_name` says which backend was taken. OpenVINO comes last: it is for installs
that have nothing else, and for options that only it has. Backends that build an engine at first
use, which takes minutes, are taken by name only.
"""


def backend_class(name: str) -> type[Backend]:
    """Imports the class of a backend; what the backend runs on is imported when it opens a file.

    Raises:
        UsageError: there is no backend of that name.

    Example:
        >>> backend_class("openvino").__name__
        'OpenVinoBackend'
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")
    found: type[Backend] = pkgutil.resolve_name(BACKENDS[name])
    return found


def open_backend(model: Path | ModelFile, name: str, options: BackendOptions) -> Backend:
    """Opens a model file in a backend.

    A backend that was asked for by name is never replaced by another.

    Args:
        model: the exported model, or an engine: its path or its file.
        name: name of the backend. "auto" takes the first one that is there, of those that
            understand all options that were given; for an engine it takes "tensorrt".
        options: what is asked of the backend.

    Raises:
        UsageError: no backend of that name, an option that it doesn't understand, or an engine
            for another backend than "tensorrt".
        BackendUnavailableError: the backend isn't installed or can't run here, or none can.
        ArtifactError: the backend refuses the file.

    Example:
        backend = open_backend(Path("model.onnx"), "auto", BackendOptions(threads=2))
        outputs = backend.infer({"image": batch}, ["logits", "cams"])
    """
    is_an_engine = model.is_engine if isinstance(model, ModelFile) else is_engine(model)
    if name == "auto" and is_an_engine:
        name = "tensorrt"
    if name != "auto":
        kind = backend_class(name)
        _refuse_unknown(kind, options)
        if is_an_engine and name != "tensorrt":
            named = model.name if isinstance(model, ModelFile) else model
            raise UsageError(
                f"{named} is a TensorRT engine, which only the backend 'tensorrt' runs, not "
                f"{name!r}; load the .onnx file that it was built from"
            )
        return kind.open(model, options)
    given = options.given()
    kinds = [kind for kind in map(backend_class, AUTO_ORDER) if kind.understands.issuperset(given)]
    if not kinds:
        raise UsageError(
            f"no backend that 'auto' tries ({', '.join(AUTO_ORDER)}) has all of the options "
            f"{', '.join(given)}; name one of {', '.join(BACKENDS)}"
        )
    missing = []
    for kind in kinds:
        try:
            return kind.open(model, options)
        except BackendUnavailableError as exc:  # noqa: PERF203 (there are few backends)
            missing.append(exc)
    raise BackendUnavailableError(
        "no backend can be used here: " + "; ".join(map(str, missing))
    ) from missing[-1]


def _refuse_unknown(kind: type[Backend], options: BackendOptions) -> None:
    """Refuses options that a backend doesn't understand."""
    unknown = [name for name in options.given() if name not in kind.understands]
    if unknown:
        raise UsageError(
            f"the backend {kind.name!r} has no option {' and no option '.join(unknown)}; "
            f"its options are {', '.join(sorted(kind.understands))}"
        )
