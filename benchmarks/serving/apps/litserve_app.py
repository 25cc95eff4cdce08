"""LitServe, with its batching. Its requests are JSON or forms, so an image comes as base64.

python -m benchmarks.serving.apps.litserve_app MODEL PORT BATCH
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
from fastapi import Response

import sigcam
from benchmarks.serving.apps.answer import answer


class Explain(litserve.LitAPI):  # type: ignore[misc]
    """Bytes in, bytes out."""

    def setup(self, device: str) -> None:
        """Loads the model in the process that runs it."""
        del device
        self.session = sigcam.load(sys.argv[1], backend="ort")

    def decode_request(self, request, **kwargs):  # its kind of request is read off annotations
        """Returns the encoded image."""
        del kwargs
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Leaves a batch a list: images have sizes of their own."""
        return list(inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Leaves it a list again."""
        return output

    def predict(self, images: list[bytes] | bytes) -> list[bytes] | bytes:
        """Explains a batch."""
        if isinstance(images, bytes):
            return answer(self.session.explain(images)[0])
        return [answer(found[0]) for found in self.session.explain(images)]

    def encode_response(self, output: bytes) -> Any:
        """Returns the bytes as they are."""
        return Response(output)


if __name__ == "__main__":
    batch = int(sys.argv[3])
    api = Explain(max_batch_size=batch, batch_timeout=0.002, api_path="/explain")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, healthcheck_path="/ready"
    )
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
