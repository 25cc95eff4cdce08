"""Whether an engine is the one that its sidecar describes, and can run here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sigcam.kernels.calls import DeviceInfo
from sigcam.runtime.digest import model_digest
from sigcam.runtime.errors import ArtifactError
from sigcam.runtime.tensorrt.seam import DISTRIBUTIONS, dotted
from sigcam.runtime.tensorrt.sidecar import Sidecar, here

_BY_DEFAULT = (8, 0)
"""TensorRT-RTX builds for this compute capability and later ones if none is named
(NVIDIA, "CPU-Only AOT and TensorRT-RTX Engines")."""


def read_engine(engine: Path, sidecar: Sidecar) -> bytes:
    """The bytes of an engine, once they are known to be those that the sidecar describes.

    Raises:
        ArtifactError: the file can't be read, or has another size or hash.
    """
    again = f"copy both files again, or run `{sidecar.command(engine)}`"
    try:
        size = engine.stat().st_size
        data = engine.read_bytes() if size == sidecar.size else b""
    except OSError as exc:
        raise ArtifactError(f"cannot read {engine}: {exc.strerror or exc}") from exc
    if size != sidecar.size:
        raise ArtifactError(
            f"{engine} has {size} bytes, its sidecar is for one of {sidecar.size}; {again}"
        )
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        raise ArtifactError(f"{engine} is not the file that its sidecar is for; {again}")
    return data


def check_source(engine: Path, sidecar: Sidecar) -> None:
    """Refuses an engine whose model was exported anew beside it since; a missing one is fine.

    Raises:
        ArtifactError: the .onnx file beside it is another one, or can't be read.
    """
    model = engine.with_name(sidecar.source)
    if model.is_file() and model_digest(model) != sidecar.source_sha256:
        raise ArtifactError(
            f"{engine} was built from another {model.name} than the one beside it now; run "
            f"`{sidecar.command(engine)}`, or move the engine elsewhere"
        )


def check_fit(
    engine: Path, sidecar: Sidecar, *, package: str, version: str, gpu: DeviceInfo
) -> None:
    """Refuses an engine that can't run with this TensorRT on this GPU.

    Engines are good for the version that built them, to the last number, as none is built
    with TensorRT's flag for others. Those of the package tensorrt are good for one model of
    GPU: kernels are chosen by its multiprocessors, caches and memory, and TensorRT itself says
    that elsewhere an engine is likely to be slower or even to fail, though it would load it.

    Args:
        engine: the file, for messages.
        sidecar: of it.
        package: the TensorRT at hand.
        version: its version.
        gpu: the GPU that it is to run on.

    Raises:
        ArtifactError: one of them isn't what the engine was built for.
    """
    command = sidecar.command(engine)
    again = f"build it again here with `{command}`"
    if (package, version) != (sidecar.package, sidecar.version):
        raise ArtifactError(
            f"{engine} was built by {sidecar.package} {sidecar.version}, and runs with no other "
            f"version; installed is {package} {version}; install "
            f"{DISTRIBUTIONS[sidecar.package]}=={sidecar.version} or {again}"
        )
    if package == "tensorrt" and sidecar.platform != here():
        raise ArtifactError(f"{engine} was built on {sidecar.platform}, this is {here()}; {again}")
    mine = dotted(gpu.capability)
    if sidecar.capabilities:
        fits, wanted = mine in sidecar.capabilities, ", ".join(sidecar.capabilities)
    else:
        fits, wanted = gpu.capability >= _BY_DEFAULT, "8.0 and later"
    if not fits:
        named = f" --capability {mine}" if package == "tensorrt_rtx" else ""
        raise ArtifactError(
            f"{engine} was built for compute capability {wanted}, this GPU has {mine}; run "
            f"`{command}{named}`" + ("" if named else " here")
        )
    if sidecar.gpu is not None and sidecar.gpu != gpu.name:
        raise ArtifactError(
            f"{engine} was built on {sidecar.gpu}, this GPU is {gpu.name}, and an engine of "
            f"TensorRT is for one model of GPU; {again}"
        )
