"""Checks that model files are what was written: artifacts, engines, branch files, folders.

`verified` checks one file and all that belongs to it and raises; `check_files` checks many and
says of each what came of it. Neither imports torch, onnx or a backend.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sigcam.core.artifact import check_belongs, head_path, is_engine
from sigcam.core.digest import check_branch_digest
from sigcam.core.errors import ArtifactError, ModelError, SigcamError
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import Sidecar, read_sidecar

__all__ = ["Checked", "branch_digest", "check_files", "engine_bytes", "verified"]

_SUFFIXES = (".onnx", ".engine", ".safetensors")
"""What the names of files end in that are looked for in a folder."""


@dataclass(frozen=True)
class Checked:
    """What came of checking a file.

    Attributes:
        file: the file's path.
        kind: "artifact", "head graph", "engine" or "branch file"; None where that can't be told.
        digest: the digest that it carries (an engine's is its sidecar's SHA-256 of it); None
            where it isn't what was written.
        error: what is wrong; None where nothing is.
    """

    file: str
    kind: str | None
    digest: str | None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, with `ok` in front."""
        return {"ok": self.error is None, **asdict(self)}


def verified(path: str | Path) -> list[Checked]:
    """Checks a file and what belongs to it.

    Of an artifact these are its weights in a file beside it and the head graph beside it; of an
    engine its sidecar, and the head graph; an engine's sidecar stands for the engine.

    Args:
        path: an .onnx, .engine, .engine.json or .safetensors file.

    Returns:
        What was checked, one for each graph, engine or branch file.

    Raises:
        ArtifactError, ModelError: a file is missing or isn't what was written; says which and
            what to do.

    Example:
        [one.kind for one in verified("model.onnx")]  # ["artifact", "head graph"]
    """
    path = Path(path)
    if path.name.endswith(".engine.json"):
        path = path.with_suffix("")
    if path.suffix == ".safetensors":
        return [Checked(str(path), "branch file", branch_digest(path))]
    model = ModelFile(path)
    if is_engine(path):
        sidecar = read_sidecar(path)
        engine_bytes(path, sidecar)
        found = [Checked(str(path), "engine", sidecar.sha256)]
    else:
        model.verify()
        found = [Checked(str(path), _kind(model), model.spec.digest)]
    head = head_path(path)
    if model.spec.kind == "artifact" and model.spec.head_input is not None and head.is_file():
        second = ModelFile(head)
        check_belongs(second.spec, model.spec, head)
        second.verify()
        found.append(Checked(str(head), _kind(second), second.spec.digest))
    return found


def check_files(paths: list[Path]) -> list[Checked]:
    """Checks files and the model files in folders; an error of one doesn't end it.

    Args:
        paths: files as for `verified`, and folders, which are searched with all that lies in
            them.

    Returns:
        What came of each file, each file once.

    Example:
        bad = [one for one in check_files([Path("models/")]) if one.error is not None]
    """
    found: dict[str, Checked] = {}
    for path in paths:
        inside = _inside(path) if path.is_dir() else [path]
        if not inside:
            wanted = ", ".join(_SUFFIXES)
            found[str(path)] = Checked(str(path), None, None, f"{path} holds no {wanted} file")
        for file in inside:
            try:
                checked = verified(file)
            except SigcamError as exc:
                checked = [Checked(str(file), None, None, str(exc))]
            for one in checked:
                # A head graph may be fine by itself and wrong beside its artifact.
                if one.file not in found or found[one.file].error is None:
                    found[one.file] = one
    return list(found.values())


def engine_bytes(engine: Path, sidecar: Sidecar) -> bytes:
    """Reads an engine, and checks that its bytes are those that the sidecar describes.

    Raises:
        ArtifactError: the file can't be read, or has another size or hash.

    Example:
        data = engine_bytes(engine, read_sidecar(engine))
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


def branch_digest(path: Path) -> str:
    """Checks a branch file, and returns its digest.

    Raises:
        ModelError: the file can't be read, or isn't what was written.

    Example:
        branch_digest(Path("branch.safetensors"))
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return check_branch_digest(data, path)


def _kind(model: ModelFile) -> str:
    return "artifact" if model.spec.kind == "artifact" else "head graph"


def _inside(folder: Path) -> list[Path]:
    """Lists the model files in a folder, hidden ones left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in _SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
