"""A file of an image to `sigcam serve` by Triton's client, over HTTP or gRPC.

    pip install "tritonclient[http,grpc]"
    python examples/clients/with_tritonclient.py cat.jpg map.png --model model
    python examples/clients/with_tritonclient.py cat.jpg map.png --model model --grpc --port 8001

Prints the three most probable classes with their boxes, and writes the map of the first one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

OUTPUTS = ("explanations", "overlay_png")


def main() -> None:
    """Asks the server, and shows its answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--grpc", action="store_true")
    given = parser.parse_args()
    found = ask(given.image.read_bytes(), given.model, f"{given.host}:{given.port}", given.grpc)
    for text in found.as_numpy("explanations")[0]:
        one = json.loads(text)
        print(f"{one['label']}\t{one['probability']:.4f}\t{json.dumps(one['boxes'])}")
    given.out.write_bytes(found.as_numpy("overlay_png")[0, 0])


def ask(image: bytes, model: str, address: str, by_grpc: bool) -> Any:
    """Returns the answer for one image. Both clients of tritonclient are used alike."""
    if by_grpc:
        import tritonclient.grpc as package
    else:
        import tritonclient.http as package
    tensor = package.InferInput("encoded_image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], object))
    outputs = [package.InferRequestedOutput(name) for name in OUTPUTS]
    with package.InferenceServerClient(address) as client:
        return client.infer(model, [tensor], outputs=outputs, parameters={"top_k": 3})


if __name__ == "__main__":
    main()
