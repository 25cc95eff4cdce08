"""One process that serves: it listens while models load, and ends without dropping a request."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from sigcam.core.errors import ImageWarning, SigcamError, UsageError
from sigcam.serve.allocator import give_back_freed_memory
from sigcam.serve.control import Control
from sigcam.serve.http.around import make_server_app
from sigcam.serve.http.connection import Connection
from sigcam.serve.observe.logs import LogFormat, LogLevel
from sigcam.serve.observe.metrics import Metrics
from sigcam.serve.observe.tracing import Tracer, find_tracer
from sigcam.serve.options import ServeOptions
from sigcam.serve.priority import yield_python_soon
from sigcam.serve.repository import Repository
from sigcam.serve.served import BackendChoice
from sigcam.serve.service import Service

__all__ = ["ServerSettings", "listen", "run_server"]

_BACKLOG = 2048

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the pools of clients and proxies."""

_log = logging.getLogger("sigcam.serve")


@dataclass(frozen=True)
class ServerSettings:
    """All that a serving process is told. It can be sent to another process.

    Attributes:
        sources: the models, as `Repository` takes them.
        choice: how they are opened.
        options: limits and habits.
        token: that requests must bear; None lets all in.
        origins: of web pages that may ask, beside the server's own.
        certificate: file of the certificate for TLS; None for plain HTTP.
        key: file of its key.
        key_password: of the key's file.
        client_ca: file of the authorities whose certificates clients must have; None asks for none.
        grpc_address: address and port for gRPC, with a colon between; None for none.
        grpc_shared: whether several processes open that port.
        log_format: of the lines on standard error.
        log_level: the least important ones that are written.
    """

    sources: tuple[str, ...]
    choice: BackendChoice = field(default_factory=BackendChoice)
    options: ServeOptions = field(default_factory=ServeOptions)
    token: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    key_password: str | None = field(default=None, repr=False)
    client_ca: Path | None = None
    grpc_address: str | None = None
    grpc_shared: bool = False
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise UsageError("a key for TLS belongs to a certificate; name its file too")
        if self.client_ca is not None and self.certificate is None:
            raise UsageError("clients show certificates over TLS only; name the server's own too")
        if self.certificate is not None:
            self._check_tls(self.certificate)

    def _check_tls(self, certificate: Path) -> None:
        """Refuses files that TLS can't begin with, before anything is loaded."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password, where there is none: OpenSSL would ask the terminal otherwise.
            context.load_cert_chain(certificate, self.key, self.key_password or "")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as exc:  # SSLError is one
            files = ", ".join(str(one) for one in (certificate, self.key, self.client_ca) if one)
            raise UsageError(
                f"TLS can't begin with {files}: {exc}; give PEM files, the certificate with the "
                "key that belongs to it, and the key's password in the environment"
            ) from exc

    @property
    def scheme(self) -> str:
        """Returns "https" with a certificate, else "http"."""
        return "http" if self.certificate is None else "https"


def listen(host: str, port: int, *, shared: bool = False, hold: bool = False) -> socket.socket:
    """Opens the port that requests come to.

    Args:
        host: name or address of the interface.
        port: its number; 0 for any that is free.
        shared: whether several processes may open it.
        hold: whether it is only taken, and others listen.

    Raises:
        UsageError: the port is taken, or the address isn't this machine's.

    Example:
        >>> with listen("127.0.0.1", 0) as found:
        ...     found.getsockname()[0]
        '127.0.0.1'
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not hold:
            return socket.create_server(
                address[:2], family=family, backlog=_BACKLOG, reuse_port=shared
            )
        made = socket.socket(family)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(address)
        except BaseException:
            made.close()
            raise
        return made
    except OSError as exc:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {exc.strerror or exc}; choose "
            "another --port or --host"
        ) from exc


def run_server(
    settings: ServerSettings,
    opened: Callable[[], socket.socket],
    when_ready: Callable[[], None] = lambda: None,
    *,
    control: Control | None = None,
    load_first: bool = False,
    but: Collection[str] = (),
) -> None:
    """Serves until the process is told to end, by SIGTERM or Ctrl-C.

    Args:
        settings: what is served.
        opened: opens the port, as `listen` does; it is closed at the end.
        when_ready: called when all models are loaded.
        control: connects it with other processes that serve the same; None for one alone.
        load_first: whether the port is opened when all models are loaded, and not before.
        but: models that were unloaded in the other processes.

    Raises:
        SigcamError: a model can't be loaded.
    """
    service = Service(Repository(settings.sources), settings.choice, settings.options)
    # Clients are told what they should know; each warning of another text would be kept for ever.
    warnings.simplefilter("ignore", ImageWarning)
    _allow_connections()
    give_back_freed_memory()
    yield_python_soon()
    stop = threading.Event() if control is None else control.stop
    server = _Server(settings, service, stop)
    if control is not None:
        control.listen({"load": service.models.load, "unload": service.models.unload})
        service.load = partial(control.change, "load")
        service.unload = partial(control.change, "unload")
    loader = threading.Thread(target=server.load, args=(when_ready, but), name="sigcam-load")
    loader.start()
    try:
        if load_first:
            server.opened.set()
            loader.join()
        if server.error is None:
            server.run([opened()])
    finally:
        server.opened.set()
        loader.join()
        service.close()
        if server.tracer is not None:
            server.tracer.close()
    if server.error is not None:
        raise server.error


def _allow_connections() -> None:
    """Lets the process have as many connections open as the system allows it at most.

    The usual limit of 1024 files is reached by a thousand clients that keep theirs open.
    """
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _config(settings: ServerSettings, service: Service, tracer: Tracer | None) -> uvicorn.Config:
    return uvicorn.Config(
        make_server_app(service, Metrics(), settings.token, settings.origins, tracer),
        http=Connection,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.options.drain_timeout) or 1,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        ssl_keyfile_password=settings.key_password or "",
        ssl_ca_certs=None if settings.client_ca is None else str(settings.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if settings.client_ca is None else ssl.CERT_REQUIRED,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it ends.

    Told to end, it is no longer ready, but goes on for `drain_delay` seconds. Then it lets no
    further request in and waits for those that are running, `drain_timeout` seconds at most; the
    port stays open until then, so that whoever asks gets an answer. Told a second time, it ends.
    """

    def __init__(self, settings: ServerSettings, service: Service, stop: threading.Event) -> None:
        self.tracer = find_tracer()
        super().__init__(_config(settings, service, self.tracer))
        self._settings, self._service = settings, service
        self._grpc: Any = None
        self.opened = threading.Event()
        self._stop = stop
        self._since: float | None = None
        self.error: SigcamError | None = None

    def load(self, when_ready: Callable[[], None], but: Collection[str]) -> None:
        """Loads the models; ends the server where that fails."""
        try:
            self._service.models.load_all(but)
        except SigcamError as exc:
            self.error = exc
            self.should_exit = True
        except BaseException:
            self.should_exit = True
            raise
        else:
            self.opened.wait()  # models may be quicker than the ports
            when_ready()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port of gRPC beside that of HTTP."""
        if self._settings.grpc_address is not None:
            from sigcam.serve.grpc.server import GrpcSettings, start_grpc  # an extra

            own = self._settings
            settings = GrpcSettings(
                own.grpc_address or "", own.grpc_shared, own.token, own.certificate, own.key,
                own.client_ca,
            )  # fmt: skip
            try:
                self._grpc = await start_grpc(self._service, settings, self.tracer)
            except SigcamError as exc:
                self.error = exc
                self.should_exit = True
        await super().startup(sockets)
        self.opened.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the ports."""
        if self._grpc is not None:
            await self._grpc.stop(0.0 if self.force_exit else 1.0)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end."""
        del frame
        if self._since is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._drain()

    async def on_tick(self, counter: int) -> bool:
        """Looks ten times a second whether it may end."""
        if self._stop.is_set():
            self._drain()
        if self._since is not None:
            options, seconds = self._service.options, time.monotonic() - self._since
            if seconds >= options.drain_delay:
                self._service.closing = True
                late = seconds >= options.drain_delay + options.drain_timeout
                if late and self._service.running:
                    _log.warning("%d requests are given up", self._service.running)
                if late or not self._service.running:
                    self.should_exit = True
        return await super().on_tick(counter)

    def _drain(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
            self._service.draining = True
