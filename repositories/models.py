"""A model in a repository: its files, copied and compared, and what its graph takes and gives."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sigcam.core.artifact import head_path, is_engine
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import Sidecar, read_sidecar, sidecar_path
from sigcam.core.spec import Spec
from sigcam.core.verify import verified
from sigcam.hub.files import files_of
from sigcam.repositories.options import NamedModel
from sigcam.runtime.backends.base import TensorInfo
from sigcam.runtime.model import ExportedModel

__all__ = ["CopiedModel", "copied_file", "copy_model", "link_graph"]

_GRAPH, _ENGINE = "model.onnx", "model.engine"


@dataclass(frozen=True)
class CopiedModel:
    """A model whose files lie in a folder of the repository.

    Attributes:
        name: under which the server has it.
        path: the .onnx or .engine file there.
        files: all files that it consists of, `path` first.
        spec: what it is.
        inputs, outputs: what the graph takes and gives. None in a shape is free; the first axis
            is the batch.
        sidecar: what is known of an engine; None for ONNX.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    spec: Spec
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sidecar: Sidecar | None = None

    @property
    def is_engine(self) -> bool:
        """Says whether it is an engine of TensorRT."""
        return self.sidecar is not None

    @property
    def output_names(self) -> frozenset[str]:
        """Returns the names of the graph's outputs."""
        return frozenset(one.name for one in self.outputs)


def copy_model(model: NamedModel, folder: Path) -> CopiedModel:
    """Copies a model with what belongs to it, and compares the copies with their digests.

    The file is called model.onnx or model.engine there. Weights beside a graph keep the name by
    which the graph calls them.

    Args:
        model: the file and its name.
        folder: where the copies go; it is made.

    Raises:
        ArtifactError: the file isn't a usable artifact, or not what was written.
        UsageError: it is a head graph.
        BackendUnavailableError: ONNX Runtime isn't installed, which tells what a graph takes.

    Example:
        copied = copy_model(NamedModel("net", Path("net.onnx")), Path("repository/net/1"))
        copied.inputs[0].name  # "image"
    """
    source = ModelFile(model.path)
    if source.spec.kind != "artifact":
        raise UsageError(
            f"{model.path} is a head graph; give the artifact that it belongs to, beside which it "
            "is found"
        )
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / (_ENGINE if source.is_engine else _GRAPH)
    beside = {head_path(model.path): head_path(place)}
    if source.is_engine:
        beside[sidecar_path(model.path)] = sidecar_path(place)
    files = [place]
    shutil.copyfile(model.path, place)
    for one in _beside(model.path):
        copy = beside.get(one, folder / one.name)
        if copy in files:
            raise ArtifactError(f"{one} and {model.path.name} can't lie in one folder; rename one")
        shutil.copyfile(one, copy)
        files.append(copy)
    verified(place)
    return _described(model.name, place, tuple(files), model.path)


def copied_file(folder: Path) -> Path:
    """Returns the model's file in a folder that `copy_model` filled.

    Example:
        >>> copied_file(Path("repository/net/1")).name
        'model.onnx'
    """
    engine = folder / _ENGINE
    return engine if engine.is_file() else folder / _GRAPH


def link_graph(model: CopiedModel, folder: Path) -> Path:
    """Puts a model's graph into a second folder, without copying where the disk allows it.

    That is what another runtime needs: the weights beside the graph, but neither the head graph
    nor an engine's sidecar.

    Args:
        model: the model, in the folder that it was copied to.
        folder: the second folder; it is made.

    Returns:
        The .onnx or .engine file there.

    Example:
        link_graph(copied, Path("repository/net/1"))  # repository/net/1/model.onnx
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in (model.path, *(model.path.with_name(one) for one in model.spec.external_data)):
        place = folder / file.name
        try:
            os.link(file, place)
        except OSError:  # a file system without links
            shutil.copyfile(file, place)
    return folder / model.path.name


def _beside(path: Path) -> list[Path]:
    """Lists the files that belong to a model, without its own."""
    if not is_engine(path):
        return files_of(path)[1:]
    head = head_path(path)
    return [sidecar_path(path), *(files_of(head) if head.is_file() else [])]


def _described(name: str, path: Path, files: tuple[Path, ...], original: Path) -> CopiedModel:
    sidecar = read_sidecar(path) if is_engine(path) else None
    graph = path if sidecar is None else _source_of(sidecar, original)
    # The digest was compared; the backend says what the graph really has.
    with ExportedModel.open(graph, "ort", with_head=False, verify=False) as model:
        inputs, outputs = model.backend.inputs, model.backend.outputs
        return CopiedModel(name, path, files, model.spec, inputs, outputs, sidecar)


def _source_of(sidecar: Sidecar, engine: Path) -> Path:
    """Returns the ONNX file that an engine was built from, which alone says all of its outputs.

    Raises:
        ArtifactError: it doesn't lie beside the engine.
    """
    path = engine.with_name(sidecar.source)
    if not path.is_file() or ModelFile(path).contents_sha256() != sidecar.source_sha256:
        raise ArtifactError(
            f"the inputs and outputs of {engine} are read from the model that it was built from, "
            f"{sidecar.source}, which isn't beside it; put that file there"
        )
    return path
