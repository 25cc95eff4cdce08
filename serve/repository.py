"""Which models a server has: named on its command line, or found in folders.

A folder is a model repository: it holds model files, or a folder for each model, with a folder for
each version in it: `FOLDER/cats.onnx`, or `FOLDER/cats/2/model.onnx`. Names that clients send are
looked up among what was found here, and never become a part of a path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sigcam.core.errors import UsageError

__all__ = ["ModelPlace", "Repository"]

_SUFFIXES = (".onnx", ".engine")
_HUB = "hf://"


@dataclass(frozen=True)
class ModelPlace:
    """A version of a model, and where it lies.

    Attributes:
        name: that clients know it by.
        version: likewise, digits.
        path: the file, or an address on the Hub.
    """

    name: str
    version: str
    path: str

    @property
    def number(self) -> int:
        """Returns the version as a number: the largest is the one that is taken by default."""
        return int(self.version)


class Repository:
    """The models that a server was told of. Folders are read anew whenever it is asked."""

    def __init__(self, sources: Iterable[str]) -> None:
        """Checks what was named.

        Args:
            sources: model files, addresses on the Hub, either with "NAME=" before them, and
                folders.

        Raises:
            UsageError: none, a name that two models have, or a folder without any.
        """
        self._sources = tuple(sources)
        self._folders = frozenset(source for source in self._sources if _is_folder(source))
        if not self._sources:
            raise UsageError("a server needs a model; name an exported file, or a folder of them")
        if not self.places():
            raise UsageError(
                f"there is no model in {', '.join(self._sources)}; a folder holds NAME.onnx files, "
                "or NAME/1/model.onnx"
            )

    @property
    def has_folder(self) -> bool:
        """Says whether there is a folder, whose models may be loaded and unloaded."""
        return bool(self._folders)

    def places(self) -> dict[str, list[ModelPlace]]:
        """Returns the versions of each model by its name, the newest last.

        Raises:
            UsageError: a name that two models have, or a folder that is gone.
        """
        found: dict[str, list[ModelPlace]] = {}
        for source in self._sources:
            own: dict[str, list[ModelPlace]] = {}
            inside = source in self._folders
            for place in _in_folder(Path(source)) if inside else [_place_of(source)]:
                own.setdefault(place.name, []).append(place)
            for name, places in own.items():
                if name in found:
                    raise UsageError(
                        f"two models are named {name!r}: {found[name][0].path} and "
                        f"{places[0].path}; name one of them otherwise, as OTHER={places[0].path}"
                    )
                found[name] = sorted(places, key=lambda one: one.number)
        return found


def _is_folder(source: str) -> bool:
    return not source.startswith(_HUB) and Path(source).is_dir()


def _place_of(source: str) -> ModelPlace:
    name, equals, path = source.partition("=")
    if not equals or "/" in name:
        name, path = "", source
    if not path.startswith(_HUB):
        path = str(Path(path).expanduser().absolute())
    return ModelPlace(name or _name_of(path), "1", path)


def _name_of(path: str) -> str:
    """Returns the name of a model by its file: "cats" of cats.onnx and of cats.rtx.engine."""
    address = path.partition("@")[0] if path.startswith(_HUB) else path
    last = Path(address).name
    for suffix in (".rtx.engine", *_SUFFIXES):
        last = last.removesuffix(suffix)
    return last


def _in_folder(folder: Path) -> Iterator[ModelPlace]:
    for entry in _entries(folder):
        if _is_model(entry):
            yield ModelPlace(_name_of(str(entry)), "1", str(entry.absolute()))
        elif entry.is_dir() and not entry.name.startswith("."):
            for version in _entries(entry):
                if version.name.isascii() and version.name.isdigit() and version.is_dir():
                    file = _only_model(version)
                    if file is not None:
                        yield ModelPlace(entry.name, str(int(version.name)), str(file.absolute()))


def _only_model(folder: Path) -> Path | None:
    files = [one for one in _entries(folder) if _is_model(one)]
    if len(files) > 1:
        raise UsageError(
            f"{folder} holds {len(files)} models; a version's folder holds one file (and its head "
            "graph)"
        )
    return files[0] if files else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as exc:
        raise UsageError(
            f"cannot list {folder}: {exc.strerror or exc}; put it back, or start the server anew"
        ) from exc


def _is_model(path: Path) -> bool:
    is_head = path.name.endswith(".head.onnx")
    return path.suffix in _SUFFIXES and not is_head and path.is_file()
