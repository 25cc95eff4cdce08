"""Whether a server's answer is what a session gives, before anything is timed."""

from __future__ import annotations

import asyncio
import base64
import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np

import sigcam
from benchmarks.serving.apps.answer import answer
from benchmarks.serving.load import Connection
from benchmarks.serving.servers import SERVERS, request_of

_PNG = b"\x89PNG"


def check_answer(name: str, address: tuple[str, int], model: Path, image: bytes) -> None:
    """Compares a server's heatmap and boxes with those of `Session.explain`.

    Args:
        name: key of `SERVERS`.
        address: of the running server.
        model: the artifact.
        image: an encoded one.

    Raises:
        RuntimeError: they differ, or there is no answer.
    """
    status, body = asyncio.run(_ask(address, request_of(name, image)))
    if status == 200 and SERVERS[name].form == "base64":
        body = base64.b64decode(json.loads(body)["outputs"][0]["data"][0])
    if status != 200 or _PNG not in body:
        raise RuntimeError(f"{name} answers {status}: {body[:300]!r}")
    line, wanted = _wanted(model, image)
    boxes = line[line.index(b'"boxes": ') + 9 :].rstrip(b"}\n")
    found = body[body.index(_PNG) :]
    if np.abs(_levels(found) - _levels(wanted)).max() > 1 or boxes not in body:
        raise RuntimeError(f"the answer of {name} isn't the session's")


@cache
def _wanted(model: Path, image: bytes) -> tuple[bytes, bytes]:
    with sigcam.load(model, "ort") as session:
        line, _, png = answer(session.explain(image)[0]).partition(b"\n")
    return line, png


def _levels(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE).astype(int)


async def _ask(address: tuple[str, int], request: bytes) -> tuple[int, bytes]:
    connection = Connection(0)
    found = await connection.exchange(*address, request)
    connection.close()
    return found
