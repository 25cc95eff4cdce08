"""Plans that trtexec built: compared with their model, and written with a sidecar.

A plan says nothing of the model that it was built from. So it is run beside the model before
anything is written, on images and classes of its own range.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.convert.tensorrt.build import Shapes, artifact_of, engine_of
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.errors import ArtifactError, BackendError
from sigcam.core.inputs import inputs_kept
from sigcam.core.model_file import ModelFile
from sigcam.core.scratch import scratch_folder
from sigcam.core.sidecar import Sidecar, dotted, here, write_pair
from sigcam.core.types import Array
from sigcam.core.versions import versions_of
from sigcam.kernels import driver
from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.backends.cuda.heatmaps import kernel_errors
from sigcam.runtime.backends.onnxruntime.cpu import OrtBackend
from sigcam.runtime.backends.tensorrt.backend import TensorRtBackend
from sigcam.runtime.backends.tensorrt.package import TensorRTPackage, choose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigcam.kernels.calls import DeviceInfo

_TOLERANCE = {"float32": 2e-3, "float16": 5e-2, "int8": 2e-1}
"""Largest mean difference of an output from the model's, relative to the output's range."""


def adopt_plan(
    model: str | Path, plan: str | Path, out: str | Path | None, options: BuildOptions
) -> Path:
    """Writes a plan of trtexec as an engine with its sidecar, after comparing it with its model.

    Args:
        model: the artifact that the plan was built from.
        plan: what trtexec wrote (`--saveEngine`), on this GPU and with this TensorRT.
        out: the engine's file; MODEL.engine beside the model when None.
        options: how the plan was built: its precision, TF32, hardware and version compatibility,
            and the GPU to compare on. What the plan itself says (sizes) is read from it.

    Returns:
        The engine's path.

    Raises:
        UsageError: a name that doesn't end in .engine.
        ArtifactError: TensorRT can't load the plan, it has other inputs or outputs than the
            model, or other values; nothing is written.
        BackendUnavailableError: TensorRT, ONNX Runtime or the GPU is missing.

    Example:
        adopt_plan("model.onnx", "model.plan", None, BuildOptions(precision="float16"))
    """
    model, plan = Path(model), Path(plan)
    with inputs_kept(model, plan):
        return _adopted(model, plan, None if out is None else Path(out), options)


def _adopted(model: Path, plan: Path, out: Path | None, options: BuildOptions) -> Path:
    """Checks the plan, and writes it."""
    file = artifact_of(model, "a plan is taken for")
    package = choose(options.package)
    target = engine_of(model, out, package)
    data = _read(plan)
    with _on(options.device) as gpu:
        shapes = _shapes_of(package, plan, data)
    sidecar = Sidecar(
        spec=file.spec,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        package=package.name,
        version=package.version,
        platform=here(),
        capabilities=(dotted(gpu.capability),),
        gpu=None if package.is_rtx else gpu.name,
        shapes=shapes,
        precision=options.precision,
        tf32=options.tf32,
        source=model.name,
        source_sha256=file.contents_sha256(),
        hardware=options.hardware,
        version_compatible=options.version_compatible,
        versions=versions_of("sigcam"),
    )
    with scratch_folder("adopt") as folder:
        # Beside no model: a comparison comes first, and the real pair last.
        trial = folder / target.name
        write_pair(trial, memoryview(data), sidecar)
        _compare(trial, file, plan, shapes, options)
    file.check_unchanged()
    write_pair(target, memoryview(data), sidecar)
    return target


def _read(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"cannot read {plan}: {exc.strerror or exc}") from exc


@contextmanager
def _on(device: int) -> Iterator[DeviceInfo]:
    """Makes a GPU current in this thread."""
    with kernel_errors():
        driver.available()
        context = driver.retain_primary_context(device)
        try:
            with context:
                yield context.device
        finally:
            context.close()


def _shapes_of(package: TensorRTPackage, plan: Path, data: bytes) -> Shapes:
    """Returns the smallest, the usual and the largest shape of each input of a plan."""
    log = package.logger()
    log.take_errors()
    runtime = package.module.Runtime(log)
    runtime.engine_host_code_allowed = True  # a version-compatible plan holds some
    native = runtime.deserialize_cuda_engine(data)
    if native is None:
        runtime = None  # the error's traceback would keep it longer than its context
        raise ArtifactError(
            f"{package.name} {package.version} can't load {plan}: {log.take_errors()}; build it "
            "with the trtexec of this version, on this GPU"
        )
    modes, shapes = package.module.TensorIOMode, {}
    for index in range(native.num_io_tensors):
        name = native.get_tensor_name(index)
        if native.get_tensor_mode(name) == modes.INPUT:
            low, usual, high = (
                tuple(int(size) for size in one) for one in native.get_tensor_profile_shape(name, 0)
            )
            shapes[name] = (low, usual, high)
    return shapes


def _compare(
    trial: Path, file: ModelFile, plan: Path, shapes: Shapes, options: BuildOptions
) -> None:
    """Runs plan and model on the same images, and refuses a plan that answers otherwise."""
    cpu = OrtBackend.open(file, BackendOptions())
    try:
        gpu: Backend = TensorRtBackend.open(trial, BackendOptions(device=options.device))
        try:
            _check_tensors(gpu, cpu, plan)
            for which in (0, 2):  # the smallest and the largest that it takes
                feeds = _feeds(cpu, shapes, which, file.spec.num_classes)
                _check_values(gpu.infer(feeds), cpu.infer(feeds), plan, file.name, options)
        finally:
            gpu.close()
    except BackendError as exc:
        raise ArtifactError(f"{plan} can't be run: {exc}") from exc
    finally:
        cpu.close()


def _check_tensors(gpu: Backend, cpu: Backend, plan: Path) -> None:
    for kind, ours, theirs in (
        ("inputs", gpu.inputs, cpu.inputs), ("outputs", gpu.outputs, cpu.outputs),
    ):  # fmt: skip
        got = {one.name: one.dtype for one in ours}
        want = {one.name: one.dtype for one in theirs}
        if got != want:
            raise ArtifactError(
                f"{plan} has the {kind} {_listed(got)}, its model {_listed(want)}; build it of "
                "that model, with the types of its inputs and outputs as they are"
            )


def _listed(types: dict[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(types.items()))


def _feeds(cpu: Backend, shapes: Shapes, which: int, classes: int) -> dict[str, Array]:
    """Makes inputs of the smallest (0) or the largest (2) shapes."""
    random, feeds = np.random.default_rng(which), {}
    for one in cpu.inputs:
        shape = shapes[one.name][which]
        if one.name == "class_ids":
            feeds[one.name] = random.integers(0, classes, shape, dtype=np.int64)
        elif one.dtype == np.uint8:
            feeds[one.name] = random.integers(0, 256, shape, dtype=np.uint8)
        else:
            feeds[one.name] = random.standard_normal(shape).astype(one.dtype)
    return feeds


def _check_values(
    got: dict[str, Array], want: dict[str, Array], plan: Path, model: str, options: BuildOptions
) -> None:
    """Refuses outputs that are off by more than the precision explains."""
    limit = _TOLERANCE[options.precision] * (5 if options.tf32 else 1)
    for name, exact in want.items():
        if got[name].shape != exact.shape:
            raise ArtifactError(
                f"{plan} gives {name} {list(got[name].shape)}, {model} {list(exact.shape)}"
            )
        scale = max(float(np.abs(exact).max()), 1e-12)
        off = float(np.abs(got[name] - exact).mean()) / scale
        if name == "class_ids_out":
            off = 0.0 if options.precision != "float32" else float((got[name] != exact).mean())
        if not off <= limit:
            raise ArtifactError(
                f"{plan} isn't {model} in {options.precision}: its {name} is off by {off:.2g} of "
                f"the largest value, where {limit:g} is allowed; build the plan of this model, or "
                "say with --fp16, --int8 or --tf32 how it was built"
            )
