"""The application on a port, in a thread of the test's process."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import uvicorn

from sigcam.serve.server import listen


@contextmanager
def listening(app, **settings):
    """Gives the port that an application listens on; `settings` are further ones of uvicorn."""
    with listen("127.0.0.1", 0) as opened:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, **settings))
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        try:
            yield opened.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
