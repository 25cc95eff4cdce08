"""Publishes an exported model on the Hub: artifact, branch file, parity report and model card."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from sigcam.core.artifact import is_engine, read_spec
from sigcam.core.errors import ArtifactError, ModelError, UsageError
from sigcam.core.scratch import scratch_folder
from sigcam.core.spec import Spec
from sigcam.core.verify import branch_digest, verified
from sigcam.hub.card import model_card
from sigcam.hub.client import client
from sigcam.hub.errors import told
from sigcam.hub.files import CARD, PARITY_SUFFIX, files_of
from sigcam.hub.names import HubName


def push(
    artifact: str | Path,
    repository: str,
    *,
    branch_file: str | Path | None = None,
    license_name: str | None = None,
    private: bool = False,
    card: bool = True,
) -> str:
    """Publishes an exported model; the repository is made if there is none.

    All files are compared with their digests first.

    Weights and head graph beside the artifact go with it.

    Args:
        artifact: the .onnx file.
        repository: "owner/name", with "@" and a branch or without.
        branch_file: what `sigcam train` wrote, for who wants to export it in another way.
        license_name: an identifier of the Hub's, such as "apache-2.0", for the model card.
        private: whether a new repository can be seen by its owner only.
        card: whether README.md is written anew; if not, one that is there stays.

    Returns:
        The address for `sigcam.load`.

    Raises:
        UsageError: no such form of a name.
        ArtifactError: the file is no exported model, or an engine or head graph; or a file isn't
            what was written.
        ModelError: there is no such branch file, or it isn't what was written.
        HubError: the Hub can't be reached or refuses; says why and what to do.

    Example:
        push("model.onnx", "owner/name", license_name="apache-2.0")  # "hf://owner/name/model.onnx"
    """
    asked, path = HubName.parse(repository), Path(artifact)
    if asked.file is not None:
        raise UsageError(f"name a repository, owner/name, not the file {asked.file} in it")
    spec = _spec_of(path)
    verified(path)
    branch = None if branch_file is None else Path(branch_file)
    if branch is not None and not branch.is_file():
        raise ModelError(f"there is no branch file {branch}; `sigcam train` writes one")
    if branch is not None:
        branch_digest(branch)
    hub = client()
    with scratch_folder("push") as folder:
        _gather(folder, path, spec, branch)
        if card:
            name = None if branch is None else branch.name
            text = model_card(spec, asked.repository, path.name, license_name, name)
            (folder / CARD).write_text(text, encoding="utf-8")
        with told(asked.repository):
            api = hub.HfApi()
            api.create_repo(asked.repository, private=private or None, exist_ok=True)
            if asked.revision is not None:
                api.create_branch(asked.repository, branch=asked.revision, exist_ok=True)
            api.upload_folder(
                repo_id=asked.repository,
                folder_path=str(folder),
                revision=asked.revision,
                commit_message=f"{path.name}, exported by sigcam",
            )
    revision = "" if asked.revision is None else f"@{asked.revision}"
    return f"hf://{asked.repository}{revision}/{path.name}"


def _spec_of(path: Path) -> Spec:
    if is_engine(path):
        raise ArtifactError(
            f"{path} is an engine, which runs on one kind of GPU only; push the .onnx file that it "
            "was made of"
        )
    spec = read_spec(path)
    if spec.kind != "artifact":
        raise ArtifactError(f"{path} is a head graph; push the artifact, and it goes along")
    return spec


def _gather(folder: Path, path: Path, spec: Spec, branch: Path | None) -> None:
    """Puts everything that is uploaded into one folder, by links where the disk has them."""
    for file in [*files_of(path), *([] if branch is None else [branch])]:
        _link(file.resolve(), folder / file.name)
    if spec.parity is not None:
        report = json.dumps(asdict(spec.parity), indent=2, ensure_ascii=False)
        (folder / f"{path.stem}{PARITY_SUFFIX}").write_text(report + "\n", encoding="utf-8")


def _link(file: Path, there: Path) -> None:
    try:
        os.link(file, there)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, there)
