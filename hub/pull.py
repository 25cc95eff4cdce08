"""Gets an exported model from the Hub, into the Hub's cache or a folder."""

from __future__ import annotations

from pathlib import Path

from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, HubError, StorageError
from sigcam.core.verify import verified
from sigcam.hub.client import client
from sigcam.hub.errors import told
from sigcam.hub.files import only_artifact, patterns_of
from sigcam.hub.names import HubName, is_on_the_hub


def local(path: str | Path) -> Path:
    """Returns the path of a model's file, which is got first where it is an address on the Hub.

    Args:
        path: of a file, which is left as it is; or "hf://owner/name", as for `pull`.

    Raises:
        UsageError, HubError, ArtifactError: as `pull`.

    Example:
        >>> local("model.onnx").name
        'model.onnx'
    """
    return pull(str(path), verify=False) if is_on_the_hub(path) else Path(path)


def pull(name: str, folder: str | Path | None = None, *, verify: bool = True) -> Path:
    """Gets an exported model, and compares it with its digests.

    Args:
        name: "owner/name", with "@" and a revision and with "/" and a file or without; "hf://"
            may stand in front.
        folder: gets everything in the repository, the model card and branch file included. None
            gets what a session needs into the Hub's own cache, where it is found again, without
            a network, too.

        verify: whether it is compared; `sigcam.load` does that itself.

    Returns:
        The path of the .onnx file; its weights and head graph lie beside it.

    Raises:
        UsageError: no such form of a name.
        HubError: the repository, revision or file can't be had; says why and what to do.
        ArtifactError: the repository holds none or several exported models, or one that sigcam
            didn't export, or that isn't what was written.
        StorageError: the folder can't be written.

    Example:
        pull("owner/name")
        pull("owner/name@v1", "models/")
    """
    asked = HubName.parse(name)
    hub = client()
    options = {"repo_id": asked.repository, "revision": asked.revision}
    with told(asked.repository):
        if folder is not None:
            try:
                root = Path(hub.snapshot_download(local_dir=str(folder), **options))
            except (NotADirectoryError, PermissionError, FileExistsError) as exc:
                raise StorageError(f"cannot write {folder}: {exc.strerror or exc}") from exc
        else:
            patterns = ["*.onnx"] if asked.file is None else patterns_of(asked.file)
            patterns += ["*.onnx.data"] if asked.file is None else []
            root = Path(hub.snapshot_download(allow_patterns=patterns, **options))
    files = [str(file.relative_to(root).as_posix()) for file in root.rglob("*.onnx")]
    path = root / (asked.file or only_artifact(asked.repository, files))
    if not path.is_file():
        there = ", ".join(sorted(files)) or "no .onnx file"
        raise HubError(f"{asked.repository} has no file {asked.file}; it has {there}")
    read_spec(path)
    if verify:
        try:
            verified(path)
        except ArtifactError as exc:
            raise ArtifactError(
                f"{exc} ({asked.repository} holds it so, or it was damaged here: remove "
                f"{path.parent} and pull it again)"
            ) from exc
    return path
