"""Ray Serve, with its batching.

python -m benchmarks.serving.apps.ray_app MODEL PORT BATCH
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import sigcam
from benchmarks.serving.apps.answer import answer

MODEL, PORT, BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Explain:
    """Bytes in, bytes out."""

    def __init__(self, path: str) -> None:
        self.session = sigcam.load(path, backend="ort")

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002)
    async def run(self, images: list[bytes]) -> list[bytes]:
        """Explains a batch."""
        return [answer(found[0]) for found in self.session.explain(images)]

    async def __call__(self, request: Request) -> Any:
        """Answers a request."""
        if request.method == "GET":
            return Response("ready")
        return Response(await self.run(await request.body()))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Explain.bind(MODEL), route_prefix="/")
    while True:
        time.sleep(3600)
