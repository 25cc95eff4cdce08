"""Loads image classifiers of transformers, as "hf/NAME": a folder, or a repository of the Hub."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigcam.classifier.zoo.base import LoadedModel, check_num_classes
from sigcam.classifier.zoo.processor import measure
from sigcam.core.errors import ModelError, SigcamError, UsageError
from sigcam.core.inputs import keep
from sigcam.core.spec import Task
from sigcam.hub.errors import hub_error

PREFIX = "hf/"

_DEFAULT_LABEL = "LABEL_"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SIZE_KEYS = ("size", "crop_size")
_RGB = 3


class HubClassifier(nn.Module):
    """A classifier of transformers as a network of one tensor in and one out.

    It maps images float32 [B, n, H, W], channels R, G, B where n is 3, to logits float32 [B, C].
    """

    def __init__(self, model: Any, *, reversed_channels: bool = False) -> None:
        """Takes over a model.

        Args:
            model: the image classifier; its result has `logits`, or calls them
                `last_hidden_state` as PP-LCNet does.
            reversed_channels: whether it takes blue, green, red.
        """
        super().__init__()
        self.model = model
        self.reversed_channels = reversed_channels

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits [B, C] of images [B, n, H, W]."""
        if self.reversed_channels:
            image = torch.cat([image[:, 2:3], image[:, 1:2], image[:, 0:1]], dim=1)
        result = self.model(pixel_values=image)
        logits: Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
        return logits


def load(
    arch: str, num_classes: int | None, *, trained: bool, channels: int | None = None
) -> LoadedModel:
    """Loads an image classifier of transformers; no code but transformers' own is run.

    Args:
        arch: "hf/" and a folder that `save_pretrained` wrote ("hf/./my-folder",
            "hf//abs/folder"), or the name of a repository, with a revision behind "@" or without
            ("hf/google/vit-base-patch16-224@main").
        num_classes: C; the model's own when None.
        trained: whether the weights are the folder's or repository's; if not, parameters are
            fresh.
        channels: n, the number of channels of the images; the model's own when None.

    Raises:
        UsageError: trained weights of another number of classes; another number of channels.
        ModelError: transformers isn't installed; the folder or repository holds no image
            classifier, one without trained weights for all layers, or a regression; an image
            processor that sigcam can't follow, or for other channels.
        HubError: the repository can't be had.

    Example:
        loaded = load("hf/google/vit-base-patch16-224", None, trained=True)
        loaded.preprocessing.rule, loaded.class_names[0]  # ("stretch", "tench, Tinca tinca")
    """
    transformers = _transformers()
    name, options = _source(arch)
    with _told(arch, name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    if trained:
        check_num_classes(arch, "(its own)", num_classes, config.num_labels)
    _check(arch, config)
    n = _channels(arch, config, channels)
    if num_classes is not None and num_classes != config.num_labels:
        config.num_labels = num_classes  # which takes the names of its own classes away
    with _told(arch, name), _quiet(transformers):
        model = _model(transformers, arch, name, config, options, trained=trained)
        processor, notes = _processor(transformers, name, config, options, n)
    measured = measure(_process(processor), _side(config), n)
    network = HubClassifier(model, reversed_channels=measured.reversed_channels)
    return LoadedModel(
        network.eval(), arch, measured.preprocessing, _names(config),
        task=_task(config), notes=tuple(f"{arch}: {note}" for note in (*notes, *measured.notes)),
    )  # fmt: skip


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as exc:
        raise ModelError(
            f'{PREFIX}NAME needs the package transformers: pip install "sigcam[hf]"'
        ) from exc


def _source(arch: str) -> tuple[str, dict[str, Any]]:
    """Returns the folder or the repository's name, and its revision as an option."""
    name = arch.removeprefix(PREFIX)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder {folder} has no config.json; name one that `save_pretrained` wrote"
            )
        keep(folder.iterdir())
        return str(folder), {"local_files_only": True}
    if name.startswith((".", "/", "~")) or not name:
        raise ModelError(f"there is no folder {name}; {PREFIX}OWNER/NAME is one of the Hub")
    name, mark, revision = name.partition("@")
    return name, {"revision": revision} if mark else {}


@contextlib.contextmanager
def _told(arch: str, name: str) -> Iterator[None]:
    """Turns what transformers raises into errors that say what to do."""
    try:
        yield
    except SigcamError:
        raise
    # transformers, the Hub's client and its HTTP client each have errors of their own.
    except Exception as exc:
        of_the_hub = None if Path(name).expanduser().is_dir() else hub_error(name, exc)
        if of_the_hub is not None:
            raise of_the_hub from exc
        if "trust_remote_code" in str(exc):
            raise ModelError(
                f"{arch} brings Python code of its own, which sigcam doesn't run; load it in a "
                "function of yours and name that: --arch file.py:function"
            ) from exc
        first = next(iter(str(exc).strip().splitlines()), "")
        raise ModelError(
            f"transformers can't load {arch} as an image classifier: {type(exc).__name__}: {first}"
        ) from exc


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silences transformers' own report of loading; what matters of it is raised here."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _check(arch: str, config: Any) -> None:
    """Refuses what is no classifier."""
    kind = config.problem_type
    if kind == "regression" or (kind is None and config.num_labels == 1):
        raise ModelError(
            f"{arch} is a regression (problem_type {kind!r}, {config.num_labels} output); a class "
            "evidence map needs classes: if it was trained as a classifier, say so in its "
            'config.json, "problem_type": "multi_label_classification"'
        )


def _channels(arch: str, config: Any, channels: int | None) -> int:
    own = int(getattr(config, "num_channels", _RGB))
    if channels not in (None, own):
        raise UsageError(
            f"{arch} takes images of {own} channels, got a mean and std of {channels}; give {own} "
            f"numbers each, or leave them out"
        )
    return own


def _model(
    transformers: Any, arch: str, name: str, config: Any, options: dict[str, Any], *, trained: bool
) -> Any:
    auto = transformers.AutoModelForImageClassification
    # Written out, attention is made of products and a softmax, which any graph can hold.
    common = {"attn_implementation": "eager", "dtype": torch.float32, "trust_remote_code": False}
    if not trained:
        config.architectures = config.architectures or []
        return auto.from_config(config, **common)
    model, report = auto.from_pretrained(
        name, config=config, output_loading_info=True, **common, **options
    )
    fresh = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if fresh:
        raise ModelError(
            f"{arch} has no trained weights for {', '.join(fresh[:4])}"
            + (f" and {len(fresh) - 4} more" if len(fresh) > 4 else "")
            + ", so its logits would be random: it isn't a classifier yet; name one that was "
            "trained for classes, or take --weights random"
        )
    return model


def _processor(
    transformers: Any, name: str, config: Any, options: dict[str, Any], channels: int
) -> tuple[Any, tuple[str, ...]]:
    """Loads the image processor; for a folder without one, its architecture's."""
    folder = Path(name)
    if not folder.is_dir() or any((folder / file).is_file() for file in _PROCESSOR_FILES):
        auto = transformers.AutoImageProcessor
        return auto.from_pretrained(name, trust_remote_code=False, **options), ()
    families = importlib.import_module("transformers.models.auto.image_processing_auto")
    of_the_family = families.IMAGE_PROCESSOR_MAPPING.get(type(config), {}).get("torchvision")
    if of_the_family is None:
        raise ModelError(
            f"the folder {name} has no {_PROCESSOR_FILES[0]}, and transformers prepares images for "
            f"{config.model_type} in no way of its own; copy that file from where the network is "
            "from, or save the image processor there with `save_pretrained`"
        )
    default, side = of_the_family(), _side(config) or 224
    sizes = {key: dict.fromkeys(dict(getattr(default, key) or {}), side) for key in _SIZE_KEYS}
    made: dict[str, Any] = {key: size for key, size in sizes.items() if size}
    if channels != _RGB:
        for key in ("image_mean", "image_std"):
            values = getattr(default, key, None) or (0.5,)
            made[key] = [sum(values) / len(values)] * channels
    processor = of_the_family(**made)
    return processor, (
        f"the folder has no {_PROCESSOR_FILES[0]}, so images are prepared as transformers does for "
        f"{config.model_type} by default; give --size, --resize-rule, --mean and --std if it was "
        "trained otherwise",
    )


def _process(processor: Any) -> Any:
    def process(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made = processor(images=image, return_tensors="np", input_data_format="channels_last")
        return np.asarray(made["pixel_values"][0])

    return process


def _side(config: Any) -> int | None:
    side = getattr(config, "image_size", None)
    return side if isinstance(side, int) else None


def _names(config: Any) -> tuple[str, ...]:
    """Returns the class names; none where they are the placeholders that transformers makes."""
    ids = sorted(config.id2label or ())
    names = tuple(str(config.id2label[i]) for i in ids)
    if ids != list(range(config.num_labels)) or all(
        name == f"{_DEFAULT_LABEL}{i}" for i, name in enumerate(names)
    ):
        return ()
    return names


def _task(config: Any) -> Task | None:
    if config.num_labels == 1:  # one logit says itself what it is
        return None
    if config.problem_type == "single_label_classification":
        return "single-label"
    return None if config.problem_type is None else "multi-label"
