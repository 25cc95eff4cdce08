"""A file of an image to `sigcam serve` by KServe's client, with both protocols that it speaks.

    pip install kserve
    python examples/clients/with_kserve.py cat.jpg map.png --model model

Prints the three most probable classes with their boxes, by the first protocol; and writes the map
of the first one, by the second (the Open Inference Protocol).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def main() -> None:
    """Asks the server twice, and shows its answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    given = parser.parse_args()
    image = given.image.read_bytes()
    for one in asyncio.run(explain(image, given.model, given.url)):
        print(f"{one['label']}\t{one['probability']:.4f}\t{json.dumps(one['boxes'])}")
    given.out.write_bytes(asyncio.run(overlay(image, given.model, given.url)))


async def explain(image: bytes, model: str, url: str) -> list[dict[str, Any]]:
    """Returns what the first protocol says of one image."""
    instance = {"b64": base64.b64encode(image).decode("ascii")}
    asked = {"instances": [instance], "parameters": {"top_k": 3}}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        answer = await client.explain(url, model, asked)
    return answer["explanations"][0]


async def overlay(image: bytes, model: str, url: str) -> bytes:
    """Returns the map over the image as a PNG, by the Open Inference Protocol."""
    tensor = InferInput("encoded_image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], object), binary_data=True)
    # KServe's client (0.21) reads bytes as UTF-8, which files of images aren't.
    wanted = RequestedOutput("overlay_png", {"content_type": "base64"})
    request = InferRequest(model, [tensor], request_outputs=[wanted])
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        answer = await client.infer(url, request, model)
    return base64.b64decode(answer.outputs[0].data[0])


if __name__ == "__main__":
    main()
