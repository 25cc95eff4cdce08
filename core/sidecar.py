"""The sidecar of an engine: MODEL.engine.json beside MODEL.engine.

An engine keeps no metadata of the graph that it was built from, and is good for one version
of TensorRT and certain GPUs only. Loaded elsewhere, it fails with a message from inside the
library, or runs all the same. So all of that is written down when the engine is built, and
compared before TensorRT sees the file.
"""

from __future__ import annotations

import io
import json
import platform
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sigcam.core.digest import ZEROS, digest_of, find_digest, seal
from sigcam.core.errors import ArtifactError, SchemaError, UsageError
from sigcam.core.files import atomic_path
from sigcam.core.schema import check_schema_version
from sigcam.core.spec import Spec
from sigcam.core.typed import check_types

EnginePrecision = Literal["float32", "float16", "int8"]
"""The type that an engine was built to compute in."""

PackageName = Literal["tensorrt", "tensorrt_rtx"]

Hardware = Literal["gpu", "capability", "ampere"]
"""What an engine of the package tensorrt runs on: the model of GPU that it was built on, all GPUs
of its compute capability, or all from compute capability 8.0 on."""

PACKAGES: tuple[PackageName, ...] = get_args(PackageName)
"""The packages of TensorRT, the preferred one first."""

SUFFIXES: dict[PackageName, str] = {"tensorrt": ".engine", "tensorrt_rtx": ".rtx.engine"}
"""What the names of a package's engines end in."""

SIDECAR_VERSION = 3

_TEXTS = ("sha256", "package", "version", "platform", "precision", "source", "source_sha256")
"""Fields of a sidecar that are text."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of an engine.

    Attributes:
        spec: the spec of the artifact that it was built from.
        sha256, size: hash and bytes of the engine's file.
        package, version: the TensorRT that built it.
        platform: operating system and processor that it was built on, "Linux x86_64".
        capabilities: compute capabilities that it is for, as "8.6"; empty for TensorRT-RTX's
            own choice, 8.0 and later.
        gpu: the name of the GPU that it was built on; None for TensorRT-RTX, which builds for
            all GPUs of a compute capability.
        shapes: the smallest, the usual and the largest shape of each input, by name.
        precision: the type that it computes in, "float32", "float16" or "int8".
        tf32: whether the factors of float32 products may be rounded to TF32.
        source, source_sha256: name and hash of the .onnx file.
        hardware: what else an engine of tensorrt runs on than GPUs of its own model.
        version_compatible: whether later versions of the same major version run it, too.
        versions: the other packages that took part, by name, with their versions.
    """

    spec: Spec
    sha256: str
    size: int
    package: PackageName
    version: str
    platform: str
    capabilities: tuple[str, ...]
    gpu: str | None
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    precision: EnginePrecision
    tf32: bool
    source: str
    source_sha256: str
    hardware: Hardware = "gpu"
    version_compatible: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in get_args(EnginePrecision):
            raise UsageError(f"precision must be one of {', '.join(get_args(EnginePrecision))}")
        if self.package not in PACKAGES:
            raise UsageError(f"package must be one of {', '.join(PACKAGES)}")
        if self.hardware not in get_args(Hardware):
            raise UsageError(f"hardware must be one of {', '.join(get_args(Hardware))}")
        if "image" not in self.shapes:
            raise UsageError("shapes must name the input image")
        for name, axes in (("image", 4), ("class_ids", 2)):
            if any(len(shape) != axes for shape in self.shapes.get(name, ())):
                raise UsageError(
                    f"shapes of {name} must have {axes} sizes, got {self.shapes[name]}"
                )
        for one in self.capabilities:
            parse_capability(one)
        built_here = self.package == "tensorrt"
        if built_here and len(self.capabilities) != 1:
            raise UsageError("capabilities must name that of the GPU that tensorrt built on")
        if built_here == (self.gpu is None):
            raise UsageError(f"gpu must {'' if built_here else 'not '}be named for {self.package}")

    def to_json(self) -> str:
        """Returns one JSON object with `schema_version`, then `digest`.

        The digest is that of the text itself, with these digits as zeros (see
        `sigcam.core.digest`); `spec` is what an artifact carries.
        """
        values = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "spec"}
        spec = json.loads(self.spec.to_json())
        begin = {"schema_version": SIDECAR_VERSION, "digest": ZEROS}
        text = json.dumps({**begin, **values, "spec": spec}, ensure_ascii=False, indent=1)
        # The model's name may hold bytes that aren't UTF-8, as lone surrogates; in JSON, the
        # escape that takes their place stands for the very same characters.
        data = text.encode("utf-8", "backslashreplace")
        return seal(data, find_digest(data) or 0).decode("utf-8")

    def command(self, engine: str | Path) -> str:
        """Returns the command that builds such an engine again, in the folder of the model.

        Args:
            engine: the engine's file, whose name the new one gets.
        """
        parts = [f"sigcam build-engine {shlex.quote(self.source)} --package {self.package}"]
        parts += {"float16": ["--fp16"], "int8": ["--int8"]}.get(self.precision, [])
        parts += ["--tf32"] if self.tf32 else []
        parts += [f"--hardware {self.hardware}"] if self.hardware != "gpu" else []
        parts += ["--version-compatible"] if self.version_compatible else []
        batches = [shape[0] for shape in self.shapes["image"]]
        for name, size, usual in zip(("min", "opt", "max"), batches, (1, 1, 8), strict=True):
            parts += [f"--{name}-batch {size}"] if size != usual else []
        if "class_ids" in self.shapes:
            sizes = [str(shape[1]) for shape in self.shapes["class_ids"]]
            parts += [f"--classes {'/'.join(sizes)}"]
        if self.package == "tensorrt_rtx":
            parts += [f"--capability {one}" for one in self.capabilities]
        name = Path(engine).name
        if name != Path(self.source).with_suffix(SUFFIXES[self.package]).name:
            parts += [f"--out {shlex.quote(name)}"]
        return " ".join(parts)


def sidecar_path(engine: str | Path) -> Path:
    """Returns where the sidecar of an engine lies.

    Example:
        >>> sidecar_path("model.engine").name
        'model.engine.json'
    """
    path = Path(engine)
    return path.with_name(f"{path.name}.json")


def here() -> str:
    """Returns this machine's operating system and processor, as sidecars name them.

    Example:
        here()  # "Linux x86_64"
    """
    return f"{platform.system()} {platform.machine()}"


def write_pair(engine: Path, data: memoryview, sidecar: Sidecar) -> None:
    """Writes an engine and its sidecar whole or not at all; the sidecar is renamed last.

    Should the machine stop between the two, the pair doesn't fit and loading refuses it.

    Args:
        engine: where the engine goes.
        data: the engine's bytes.
        sidecar: what is known of it.

    Raises:
        StorageError: the folder can't be written, or the disk is full.

    Example:
        write_pair(Path("model.engine"), memoryview(engine), sidecar)  # and model.engine.json
    """
    with ExitStack() as stack:
        # Left in the reverse order: the engine is renamed first.
        described = stack.enter_context(atomic_path(sidecar_path(engine)))
        built = stack.enter_context(atomic_path(engine))
        described.write_bytes(sidecar.to_json().encode("utf-8"))
        built.write_bytes(data)


def read_sidecar(engine: str | Path) -> Sidecar:
    """Reads the sidecar of an engine.

    Raises:
        ArtifactError: the engine or its sidecar is missing or can't be read, or the sidecar isn't
            what was written.
        SchemaError: the sidecar is malformed, or from a newer sigcam.

    Example:
        sidecar = read_sidecar("model.engine")
        sidecar.version, sidecar.gpu, sidecar.spec.method
    """
    engine = Path(engine)
    path = sidecar_path(engine)
    if not engine.is_file():
        raise ArtifactError(f"there is no engine {engine}; make one with `sigcam build-engine`")
    if not path.is_file():
        raise ArtifactError(
            f"{engine} has no {path.name} beside it, which says what it is; copy that file too, "
            "or build the engine again with `sigcam build-engine`"
        )
    try:
        raw = path.read_bytes()
        data = json.loads(raw.decode("utf-8"))
        version = data["schema_version"]
    except OSError as exc:
        raise ArtifactError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise SchemaError(
            f"{path} is not a JSON object with 'schema_version'; build the engine again"
        ) from exc
    check_schema_version(version, SIDECAR_VERSION, str(path), "build the engine again")
    try:
        sidecar = _from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SchemaError) as exc:
        raise SchemaError(
            f"{path} has a missing or wrong field ({exc}); build the engine again"
        ) from exc
    place = find_digest(raw)
    if place is None or digest_of(io.BytesIO(raw), place) != data.get("digest"):
        raise ArtifactError(
            f"{path} is not what was written: its digest doesn't fit its bytes; copy both files "
            "again, or build the engine again"
        )
    return sidecar


def parse_capability(text: str) -> tuple[int, int]:
    """Parses a compute capability.

    Raises:
        UsageError: not two numbers with a point between them.

    Example:
        >>> parse_capability("8.6")
        (8, 6)
    """
    major, point, minor = text.partition(".")
    if not (point and major.isdecimal() and minor.isdecimal()):
        raise UsageError(f"a compute capability must look like 8.6, got {text!r}")
    return int(major), int(minor)


def dotted(capability: tuple[int, int]) -> str:
    """Returns a compute capability as text.

    Example:
        >>> dotted((8, 6))
        '8.6'
    """
    return f"{capability[0]}.{capability[1]}"


def _from_dict(data: Mapping[str, Any]) -> Sidecar:
    """Makes a sidecar of what `to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError, SchemaError: a missing or
            wrong field.
    """
    fields = {name: data[name] for name in Sidecar.__dataclass_fields__}
    for name in _TEXTS:
        if not isinstance(fields[name], str):
            raise TypeError(f"{name} must be text, got {fields[name]!r}")
    if not isinstance(fields["size"], int):
        raise TypeError("size must be a whole number")
    for name in ("tf32", "version_compatible"):
        if not isinstance(fields[name], bool):
            raise TypeError(f"{name} must be true or false")
    if not isinstance(fields["gpu"], (str, type(None))):
        raise TypeError(f"gpu must be text or null, got {fields['gpu']!r}")
    fields["spec"] = Spec.from_json(json.dumps(data["spec"]))
    fields["capabilities"] = tuple(str(one) for one in data["capabilities"])
    fields["shapes"] = {
        name: tuple(tuple(int(size) for size in shape) for shape in three)
        for name, three in data["shapes"].items()
    }
    if any(len(three) != 3 for three in fields["shapes"].values()):
        raise ValueError("shapes must hold three for each input")
    fields["versions"] = dict(data["versions"])
    made = Sidecar(**fields)
    check_types(made)
    return made
