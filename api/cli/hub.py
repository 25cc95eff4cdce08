"""`sigcam push` and `sigcam pull`: exported models on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from sigcam.cli.common import echo, reports_errors, say


@click.command(name="push")
@click.argument("artifact", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--sigmoid-branch",
    "branch_file",
    type=click.Path(path_type=Path),
    help="The branch file, from `sigcam train`, to publish beside it.",
)
@click.option(
    "--license",
    "license_name",
    help="Licence for the model card, as the Hub names it: apache-2.0, mit, cc-by-4.0, other ...",
)
@click.option("--private", is_flag=True, help="A new repository is seen by its owner only.")
@click.option(
    "--card/--no-card",
    default=True,
    show_default=True,
    help="Write README.md anew from the spec, or keep the one that is there.",
)
@reports_errors
def push_command(
    artifact: Path,
    repository: str,
    branch_file: Path | None,
    license_name: str | None,
    private: bool,
    card: bool,
) -> None:
    """Publish an exported model on the Hugging Face Hub.

    Weights and head graph beside FILE go along, with the parity report as JSON and a model card
    made from the spec. The repository is made if there is none; OWNER/NAME@BRANCH names a branch.
    The token is that of `hf auth login` or HF_TOKEN. The address for `sigcam.load` is printed.
    """
    from sigcam.hub.push import push

    say(f"uploading {artifact} to {repository}")
    options = {"license_name": license_name, "private": private, "card": card}
    echo(push(artifact, repository, branch_file=branch_file, **options))  # type: ignore[arg-type]


@click.command(name="pull")
@click.argument("name", metavar="OWNER/NAME")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the files; by default one in the working folder, called as the repository.",
)
@reports_errors
def pull_command(name: str, out: Path | None) -> None:
    """Get an exported model, with all that was published beside it, from the Hugging Face Hub.

    OWNER/NAME may have a revision and a file behind it: OWNER/NAME@v1/model.onnx. The path of the
    artifact is printed.
    """
    from sigcam.hub.names import HubName
    from sigcam.hub.pull import pull

    folder = out or Path(HubName.parse(name).repository.partition("/")[2])
    say(f"downloading {name} to {folder}")
    echo(str(pull(name, folder)))
