"""Names of exported models on the Hub: hf://owner/name@revision/file.onnx."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sigcam.core.errors import UsageError


def is_on_the_hub(path: str | Path) -> bool:
    """Returns whether a model's path is an address on the Hub; a `Path` has lost one slash of it.

    Example:
        >>> is_on_the_hub("hf://owner/name"), is_on_the_hub(Path("hf://owner/name"))
        (True, True)
        >>> is_on_the_hub("hf/owner/name.onnx")
        False
    """
    return str(path).startswith(("hf:/", "hf:\\"))


@dataclass(frozen=True)
class HubName:
    """A repository of the Hub, and perhaps a file in it.

    Attributes:
        repository: "owner/name".
        revision: a branch, tag or commit; None for the newest of the main branch.
        file: the path of a file in the repository; None for its only artifact.

    Example:
        >>> HubName.parse("hf://owner/name@v1/model.int8.onnx")
        HubName(repository='owner/name', revision='v1', file='model.int8.onnx')
        >>> HubName.parse("owner/name").repository
        'owner/name'
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Reads a name, with "hf://" in front (or what a `Path` leaves of it) or without.

        Raises:
            UsageError: it isn't of the form owner/name[@revision][/file].
        """
        bare = re.sub(r"^hf:[/\\]+", "", text).replace("\\", "/")
        owner, _, rest = bare.partition("/")
        name, _, file = rest.partition("/")
        name, mark, revision = name.partition("@")
        if not owner or not name or (mark and not revision) or ".." in file.split("/"):
            raise UsageError(
                f"{text!r} is no name on the Hub; give owner/name, owner/name@revision, or "
                "hf://owner/name/file.onnx"
            )
        return cls(f"{owner}/{name}", revision or None, file or None)
