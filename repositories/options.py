"""What a repository is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sigcam.core.annotations import check_fields
from sigcam.core.arguments import whole_number
from sigcam.core.errors import UsageError
from sigcam.hub.pull import local

__all__ = ["NamedModel", "RepositoryOptions", "Server", "named_models"]

Server = Literal["triton", "kserve", "ovms", "ray"]
"""The servers that repositories are written for."""

SERVERS: tuple[Server, ...] = get_args(Server)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""Names that are a folder, a part of an address and a value of YAML alike, on every server."""


@dataclass(frozen=True)
class RepositoryOptions:
    """How the server shall run the models.

    Attributes:
        batch_size: most images in one run of the backend.
        batch_delay: microseconds that a request may wait for others to be run with it.
        queue_requests: most requests that wait for a model; the server refuses further ones.
        instances: copies of a model that run at once on one machine.
        image: the container image that KServe starts, made with examples/deployment/Dockerfile.

    Example:
        >>> RepositoryOptions(batch_size=16).queue_requests
        256
    """

    batch_size: int = 8
    batch_delay: int = 0
    queue_requests: int = 256
    instances: int = 1
    image: str = "sigcam:latest"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "queue_requests", "instances"):
            whole_number(getattr(self, name), name, 1)
        whole_number(self.batch_delay, "batch_delay", 0)
        if not self.image or any(one.isspace() for one in self.image):
            raise UsageError(f"image must name a container image, got {self.image!r}")


@dataclass(frozen=True)
class NamedModel:
    """A model's file, and the name under which a server has it."""

    name: str
    path: Path


def named_models(models: Sequence[str | Path]) -> list[NamedModel]:
    """Finds the names of models: what stands before "=", else the file's name without its suffix.

    Args:
        models: paths of .onnx or .engine files, or addresses on the Hub, each with "NAME=" before
            it or without.

    Raises:
        UsageError: no model, a name that a server can't have, or one that two models share.
        HubError: an address on the Hub that can't be had.

    Example:
        >>> [one.name for one in named_models(["cat.onnx", "dog=other.onnx"])]
        ['cat', 'dog']
        >>> named_models(["a/cat.onnx", "b/cat.onnx"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: two models are called 'cat': a/cat.onnx and b/cat.onnx; ...
    """
    if not models:
        raise UsageError("name at least one model")
    found: dict[str, NamedModel] = {}
    for given in models:
        name, equals, path = str(given).partition("=")
        if not equals or "/" in name:
            name, path = _stem(str(given)), str(given)
        one = NamedModel(name, local(path))
        if not _NAME.fullmatch(one.name):
            raise UsageError(
                f"{one.name!r} can't be a model's name on a server: letters, digits, '_', '-' and "
                f"'.' only, 100 at most; give another as NAME={path}"
            )
        if one.name in found:
            raise UsageError(
                f"two models are called {one.name!r}: {found[one.name].path} and {path}; give one "
                f"another name, as NAME={path}"
            )
        found[one.name] = one
    return list(found.values())


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".engine").removesuffix(".rtx").removesuffix(".onnx")
