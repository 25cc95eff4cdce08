"""The options that name a data set, the same for `sigcam train` and `sigcam evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sigcam.cli.common import options, say
from sigcam.core.errors import UsageError
from sigcam.core.inputs import identity, keep

if TYPE_CHECKING:
    from sigcam.data import Dataset

F = TypeVar("F", bound=Callable[..., Any])

_FORMATS = ["auto", "wsol", "voc", "coco", "csv", "folders"]
_NAMES = ("path", "format", "metadata", "split", "root", "mask_root", "first_pixel", "skip_bad")

_with_data = options(
    click.option(
        "--data",
        "path",
        type=click.Path(path_type=Path),
        required=True,
        help="Data set: wsolevaluation's text files, Pascal VOC, COCO instances, a CSV file of "
        "images and classes, or class folders. For a multi-label model an image may have several "
        "classes in all of them.",
    ),
    click.option(
        "--format",
        type=click.Choice(_FORMATS),
        default="auto",
        show_default=True,
        help="Which of these it is.",
    ),
    click.option(
        "--metadata", type=click.Path(path_type=Path), help="wsol: folder of the text files."
    ),
    click.option("--split", help="Which part of the data set, where it has several."),
    click.option(
        "--data-root",
        "root",
        type=click.Path(path_type=Path),
        help="wsol, coco, csv: folder that the images in --data are relative to.",
    ),
    click.option("--mask-root", type=click.Path(path_type=Path), help="wsol: the same for masks."),
    click.option(
        "--first-pixel",
        type=click.IntRange(0, 1),
        help="voc: number of the first row and column: 1 (the default), 0 for ImageNet's files.",
    ),
    click.option(
        "--skip-bad",
        is_flag=True,
        help="Leave out what is wrong with the data set and go on; it is listed.",
    ),
)


def data_options(function: F) -> F:
    """Adds the options that name a data set; the command gets them as `data`.

    That is a dict of the arguments of `open_dataset`, for `open_named`.

    Example:
        >>> @click.command()
        ... @data_options
        ... def show(data):
        ...     print(data["path"])
        >>> show(["--data", "images"], standalone_mode=False)
        images
    """

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        data = {name: kwargs.pop(name) for name in _NAMES}
        return function(*args, data=data, **kwargs)

    return _with_data(gathered)  # type: ignore[return-value]


def open_named(data: dict[str, Any], *, multi_label: bool = False) -> Dataset:
    """Opens and checks the data set that the options name, and says what it leaves out.

    Its files are kept from being written over.

    Args:
        data: as `data_options` passes it; with `written`, the folders that the command writes to,
            which are left out where they lie in it.
        multi_label: whether an image may have any number of classes.

    Raises:
        DataError, UsageError: as `open_dataset`.

    Example:
        dataset = open_named(data)  # `data` as `data_options` passes it
    """
    from sigcam.data import open_dataset

    say(f"reading and checking {data['path']}")
    check_apart(data)
    return told(open_dataset(**data, multi_label=multi_label))


def check_apart(data: dict[str, Any]) -> None:
    """Refuses to write to a data set's own folder, or to one in it that has images of it.

    Raises:
        UsageError: a folder that the command writes to is such a one.
        DataError: it can't be listed.
    """
    from sigcam.images.listing import list_images

    path = data["path"]
    for folder in data.get("written", ()):
        itself = identity(folder) is not None and identity(folder) == identity(path)
        inside = folder.is_dir() and path.resolve() in folder.resolve().parents
        found = list_images(folder).images if inside else ()
        if itself or any(image.suffix != ".npy" for image in found):  # as cached features are
            raise UsageError(
                f"{folder} is a folder of the data set {path}; name another one for what is written"
            )


def told(dataset: Dataset) -> Dataset:
    """Says what a data set leaves out, keeps its files from being written over, and returns it."""
    from sigcam.data import left_out

    for line in left_out(dataset.problems, dataset.notes):
        say(line)
    for sample in dataset.samples:
        masks = (mask for mask in sample.masks or () if isinstance(mask, Path))
        keep((sample.path, *masks))
    keep({sample.place.file for sample in dataset.samples})
    keep(dataset.path.glob("*.txt"))  # lists beside those, and names of classes
    return dataset
