"""A plain FastAPI handler: what one writes in an afternoon.

python -m benchmarks.serving.apps.fastapi_app MODEL PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import Body, FastAPI, Response

import sigcam
from benchmarks.serving.apps.answer import answer

session = sigcam.load(sys.argv[1], backend="ort")
app = FastAPI()


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Answers when the model is loaded."""
    return {"ready": True}


@app.post("/explain")
def explain(image: bytes = Body(media_type="image/jpeg")) -> Response:
    """Runs in one of the framework's threads."""
    return Response(answer(session.explain(image)[0]))


uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
