"""`sigcam serve`: predictions and maps over the Open Inference Protocol."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sigcam.cli.common import backend_options, options, reports_errors, say
from sigcam.core.errors import UsageError
from sigcam.serve.options import ImageFormat, ServeOptions

if TYPE_CHECKING:
    from sigcam.runtime.backends.base import HeatmapKind

TOKEN_VARIABLE = "SIGCAM_SERVE_TOKEN"  # noqa: S105 (the variable's name)
KEY_PASSWORD_VARIABLE = "SIGCAM_SERVE_KEY_PASSWORD"  # noqa: S105


def _limit(
    name: str, help_text: str, field: str = "", least: int = 1, chosen: str | bool = True
) -> Any:
    """Makes the option of a limit, whose default is that of `ServeOptions`.

    Args:
        name: of the option.
        help_text: what it limits.
        field: of `ServeOptions`, where it has another name.
        least: the smallest number.
        chosen: how the number is chosen where none is given, for those without a fixed one.
    """
    default = getattr(ServeOptions, field or name.removeprefix("--").replace("-", "_"))
    kind = click.FloatRange(min=0) if isinstance(default, float) else click.IntRange(min=least)
    return click.option(name, type=kind, default=default, show_default=chosen, help=help_text)


_limit_options = options(
    _limit(
        "--batch-size",
        "Most images in one run of a model.",
        chosen="8; 1 where a run has one processor",
    ),
    _limit(
        "--batch-delay",
        "Most microseconds that the first image of a batch waits for others; with 0, what waits "
        "when the backend is free makes a batch.",
        least=0,
    ),
    _limit(
        "--parallel-runs",
        "Runs of a model at the same time, which share the processors: each takes longer, and "
        "together they may do more on a CPU.",
        chosen="2 on processors, or one for every 4; 1 with openvino or a GPU",
    ),
    _limit(
        "--queue-images",
        "Most images of a model that wait or are in work; then 429, until it was worked off.",
        chosen="40, or 5 times what is run at once",
    ),
    _limit("--request-images", "Most images in a request."),
    _limit("--request-bytes", "Most bytes of a request's body."),
    _limit("--max-pixels", "Most pixels of an image, by its header."),
    _limit(
        "--max-request-classes", "Most classes that maps are made of for an image.", "max_classes"
    ),
    _limit(
        "--max-passes",
        "Most runs of an image that a request's method may take (scorecam, ablationcam, rise).",
    ),
    _limit("--response-bytes", "Most bytes of an answer's maps, before compression."),
    _limit("--request-timeout", "Seconds after which a request is given up."),
    _limit("--body-timeout", "Seconds in which a request's body must arrive."),
    _limit(
        "--drain-delay",
        "Seconds that the server goes on after SIGTERM, no longer ready, for load balancers to "
        "notice.",
    ),
    _limit("--drain-timeout", "Seconds that it then waits for running requests."),
    _limit(
        "--niceness",
        "0 to 19, on Linux: how much the threads that run models leave to those that let requests "
        "in and answer, and to other processes.",
        least=0,
    ),
    click.option(
        "--image-format",
        "image_formats",
        type=click.Choice(get_args(ImageFormat), case_sensitive=False),
        multiple=True,
        default=ServeOptions.image_formats,
        show_default=", ".join(ServeOptions.image_formats),
        help="A format of encoded images that is read; repeats.",
    ),
    click.option(
        "--model-control/--no-model-control",
        default=ServeOptions.model_control,
        show_default=True,
        help="Whether clients may load and unload the models of a folder.",
    ),
)

_server_options = options(
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="Port to listen on; 0 for any that is free.",
    ),
    click.option(
        "--grpc-port",
        type=click.IntRange(0, 65535),
        help="Port for the protocol over gRPC, 8001 as a rule; 0 for any that is free.  [default: "
        "no gRPC]",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes on the port, which share the processors; each loads the models.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        help="File with the bearer token that requests must have.  [default: the environment's "
        f"{TOKEN_VARIABLE}]",
    ),
    click.option(
        "--allow-origin",
        "origins",
        multiple=True,
        metavar="ORIGIN",
        help="Origin of web pages that may ask, as https://example.org; repeats.",
    ),
    click.option("--tls-certificate", "certificate", type=click.Path(path_type=Path),
                 help="Certificate file (PEM): serves HTTPS."),
    click.option("--tls-key", "key", type=click.Path(path_type=Path),
                 help="The certificate's key; its password is taken from the environment's "
                 f"{KEY_PASSWORD_VARIABLE}."),
    click.option("--tls-client-ca", "client_ca", type=click.Path(path_type=Path),
                 help="Authorities (PEM) whose certificate clients must show."),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text",
                 show_default=True, help="Lines on standard error, for people or as JSON."),
    click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]),
                 default="info", show_default=True,
                 help="The least important lines that are written; a request is info."),
    click.option("--no-verify", is_flag=True,
                 help="Load models without comparing them with their digests."),
)  # fmt: skip


_heatmaps_option = click.option(
    "--heatmaps",
    type=click.Choice(["float32", "uint8", "lazy"]),
    default="lazy",
    show_default=True,
    help="What a GPU makes of an artifact of the profile split for every image: heatmaps, or CAMs "
    "alone (lazy), of which the CPU makes the heatmaps that are asked for.",
)


@click.command(name="serve")
@click.argument("models", nargs=-1, required=True)
@_server_options
@_limit_options
@backend_options
@_heatmaps_option
@reports_errors
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    workers: int,
    token_file: Path | None,
    no_verify: bool,
    backend_options: dict[str, Any],
    heatmaps: HeatmapKind,
    **more: Any,
) -> None:
    """Serve MODELS over HTTP, by the Open Inference Protocol, version 2.

    MODELS are exported models (.onnx), engines, addresses on the Hub (hf://OWNER/NAME), each known
    to clients by the file's name or as NAME=FILE, and folders, which hold NAME.onnx files or
    NAME/VERSION/model.onnx and whose models clients may load and unload. docs/serving.md shows
    requests.
    """
    import uvicorn  # noqa: F401 (before anything else: tells what is to be installed)

    from sigcam.runtime.backends.base import BackendOptions, HeatmapOptions
    from sigcam.serve.observe.logs import configure_logging
    from sigcam.serve.processes import run_workers
    from sigcam.serve.served import BackendChoice
    from sigcam.serve.server import ServerSettings, listen, run_server

    settings_of_server = {
        name: more.pop(name)
        for name in ("origins", "certificate", "key", "client_ca", "log_format", "log_level")
    }
    configure_logging(settings_of_server["log_format"], settings_of_server["log_level"])
    more["max_classes"] = more.pop("max_request_classes")
    limits = ServeOptions(**more)
    name = backend_options.pop("backend")
    backend = BackendOptions(
        **backend_options, batch_size=limits.most_together, heatmaps=HeatmapOptions(heatmaps)
    )
    settings = ServerSettings(
        models,
        BackendChoice(name, backend, not no_verify),
        limits,
        _token(token_file),
        key_password=os.environ.get(KEY_PASSWORD_VARIABLE),
        **settings_of_server,
    )
    if settings.token is None and host not in ("127.0.0.1", "::1", "localhost"):
        say("anybody who reaches this address may ask: there is no --token-file")
    shown = f"[{host}]" if ":" in host else host
    with listen(host, port, hold=workers > 1) as opened:
        if grpc_port is not None:
            address = _grpc_address(host, grpc_port)
            settings = replace(settings, grpc_address=address, grpc_shared=workers > 1)
        url = f"{settings.scheme}://{shown}:{opened.getsockname()[1]}"
        also = f", for gRPC on {settings.grpc_address}" if settings.grpc_address else ""
        say(f"listening on {url}{also}; loading")
        if workers == 1:
            run_server(settings, lambda: opened, lambda: say(f"ready on {url}"))
        else:
            run_workers(settings, host, opened, workers, lambda: say(f"ready on {url}"))


def _grpc_address(host: str, port: int) -> str:
    """Finds a free port where none is named, and checks that the package is there."""
    from sigcam.serve.server import listen

    for module in ("grpc", "tritonclient"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    with listen(host, port, hold=True) as found:
        number = found.getsockname()[1]
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _token(file: Path | None) -> str | None:
    """Reads the token, of a file or of the environment."""
    if file is None:
        text = os.environ.get(TOKEN_VARIABLE)
        where = f"the variable {TOKEN_VARIABLE}"
    else:
        where = f"the token's file {file}"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise UsageError(f"cannot read {where}: {exc}; check the path") from exc
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where} must hold a token: printable ASCII characters without spaces")
    return token
