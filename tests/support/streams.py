"""Local sources that behave like cameras: a server of Motion JPEG, and one that goes quiet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


def grey(number, size=(64, 48)):
    """A grey that tells a frame's number from 0 to 235, whatever the codec does to it."""
    return np.full((size[1], size[0], 3), 10 + number % 236, np.uint8)


def number_of(image):
    return round(float(np.median(image))) - 10


class Camera(ThreadingHTTPServer):
    """Serves Motion JPEG at any path; counts what it sent.

    Attributes:
        rate: frames a second.
        each: frames of one connection; None for any number.
        then: "close" ends a connection after them, "quiet" keeps it and sends nothing.
    """

    daemon_threads = True

    def __init__(self, rate, each=None, then="close"):
        self.rate, self.each, self.then = rate, each, then
        self.sent = self.connections = 0
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}/stream"

    def handle_error(self, request, client_address):
        pass  # who reads goes away in the middle of a frame


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        camera = self.server
        camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        count = 0
        while not camera.over.is_set() and (camera.each is None or count < camera.each):
            _, data = cv2.imencode(".jpg", grey(camera.sent))
            self.wfile.write(
                b"--frame\r\nContent-Type: image/jpeg\r\n"
                + f"Content-Length: {len(data)}\r\n\r\n".encode()
                + data.tobytes()
                + b"\r\n"
            )
            camera.sent += 1
            count += 1
            time.sleep(1 / camera.rate)
        if camera.then == "quiet":
            camera.over.wait(30)

    def log_message(self, *_):
        pass


@contextmanager
def camera(rate=50, each=None, then="close") -> Iterator[Camera]:
    server = Camera(rate, each, then)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
