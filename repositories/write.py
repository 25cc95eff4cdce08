"""Writes the repository of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sigcam.core.annotations import checked
from sigcam.core.arguments import one_of
from sigcam.core.artifact import read_spec
from sigcam.core.versions import __version__
from sigcam.repositories.folder import MARK, new_folder, write_json
from sigcam.repositories.kserve import write_kserve
from sigcam.repositories.options import (
    SERVERS,
    NamedModel,
    RepositoryOptions,
    Server,
    named_models,
)
from sigcam.repositories.ovms import write_ovms
from sigcam.repositories.ray import write_ray
from sigcam.repositories.triton import write_triton

__all__ = ["WRITERS", "export_repository"]

WRITERS: dict[Server, Callable[[list[NamedModel], Path, RepositoryOptions], None]] = {
    "triton": write_triton,
    "kserve": write_kserve,
    "ovms": write_ovms,
    "ray": write_ray,
}


@checked
def export_repository(
    models: Sequence[str | Path],
    folder: str | Path,
    server: Server,
    options: RepositoryOptions | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Writes a folder from which another server runs exported models.

    The folder appears whole or not at all. Every model is compared with its digests, and opened
    once, as its graph says what it takes and gives.

    Args:
        models: .onnx or .engine files, or addresses on the Hub; "NAME=" before one gives it
            another name than the file's.
        folder: the folder to make; it may exist if it is empty.
        server: "triton", "kserve", "ovms" (OpenVINO Model Server) or "ray" (Ray Serve).
        options: batches, queue and so on; `RepositoryOptions()` when None.
        replace: whether a repository that sigcam wrote there before is replaced.

    Returns:
        The folder.

    Raises:
        UsageError: models without a name of their own, a folder that has contents, or a model that
            the server can't run.
        ArtifactError: a file that isn't a usable artifact or engine, or not what was written.
        StorageError: the folder can't be written.
        HubError: an address on the Hub that can't be had.

    Example:
        export_repository(["model.onnx"], "repository", "triton")
    """
    one_of(server, "server", SERVERS)
    named = named_models(models)
    target = Path(folder)
    with new_folder(target, replace=replace, inputs=[one.path for one in named]) as staged:
        WRITERS[server](named, staged, options or RepositoryOptions())
        digests = {one.name: read_spec(one.path).digest for one in named}
        mark = {"server": server, "sigcam": __version__, "models": digests}
        write_json(staged / MARK, mark)
    return target
