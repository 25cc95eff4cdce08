"""KServe's Python server, over the Open Inference Protocol.

It refuses binary data of the datatype BYTES that isn't UTF-8, so images come and go as base64.

python -m benchmarks.serving.apps.kserve_app MODEL PORT
"""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import Any

import kserve

import sigcam
from benchmarks.serving.apps.answer import answer


class Explain(kserve.Model):  # type: ignore[misc]
    """Encoded images in, the answer's bytes out."""

    def __init__(self, path: str) -> None:
        super().__init__("net")
        self.session = sigcam.load(path, backend="ort")
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Runs in a thread, so that the loop stays free."""
        del headers, response_headers
        images = [base64.b64decode(one) for one in payload.inputs[0].data]
        found = await asyncio.to_thread(self.session.explain, images)
        data = [base64.b64encode(answer(one[0])).decode() for one in found]
        output = kserve.InferOutput("answer", [len(data)], "BYTES", data=data)
        return kserve.InferResponse(payload.id or "0", "net", [output])


if __name__ == "__main__":
    server = kserve.ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1)
    server.start([Explain(sys.argv[1])])
