"""The files of an exported model, in a folder and in a repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sigcam.core.artifact import head_path, read_spec
from sigcam.core.errors import ArtifactError

CARD = "README.md"
PARITY_SUFFIX = ".parity.json"
_DATA = ".data"  # weights of more than 2 GiB, or --external-data


def files_of(artifact: Path) -> list[Path]:
    """Lists an artifact and what lies beside it: its weights, its head graph and that one's.

    Args:
        artifact: the .onnx file.

    Example:
        files_of(Path("model.onnx"))  # [model.onnx, model.onnx.data, model.head.onnx]
    """
    graphs = [file for file in (artifact, head_path(artifact)) if file.is_file()]
    found = [
        file
        for graph in graphs
        for file in (graph, *(graph.with_name(name) for name in read_spec(graph).external_data))
    ]
    return [file for file in found if file.is_file()]


def patterns_of(artifact: str) -> list[str]:
    """Lists the paths in a repository that an artifact may be made of.

    Example:
        >>> patterns_of("model.onnx")
        ['model.onnx', 'model.onnx.data', 'model.head.onnx', 'model.head.onnx.data']
    """
    head = artifact.removesuffix(".onnx") + ".head.onnx"
    return [artifact, artifact + _DATA, head, head + _DATA]


def only_artifact(repository: str, files: Iterable[str]) -> str:
    """Returns the path of the one artifact among the files of a repository.

    Args:
        repository: its name, for the message.
        files: the paths of all its files.

    Raises:
        ArtifactError: there is none, or there are several.

    Example:
        >>> only_artifact("owner/name", ["README.md", "model.onnx", "model.head.onnx"])
        'model.onnx'
    """
    found: Sequence[str] = sorted(
        file for file in files if file.endswith(".onnx") and not file.endswith(".head.onnx")
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactError(f"{repository} holds no .onnx file; `sigcam push` puts one there")
    named = ", ".join(f"hf://{repository}/{file}" for file in found[:4])
    raise ArtifactError(f"{repository} holds {len(found)} exported models; name one: {named}")
