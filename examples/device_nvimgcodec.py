"""Photographs that are decoded on the GPU and explained there: nvImageCodec, then sigcam.

    python examples/device_nvimgcodec.py MODEL PHOTO.jpg...

MODEL is an .onnx file or an engine of sigcam. Needs an NVIDIA GPU and `pip install
"sigcam[gpu,nvimgcodec]"`. Exits with 3 where one of them is missing.

nvImageCodec turns photographs upright and gives sRGB, as sigcam does. Its JPEG decoder rounds
otherwise than the CPU's, so heatmaps differ a little from those of `sigcam explain`.
"""

from __future__ import annotations

import sys
from typing import Any

import sigcam
from sigcam.core.errors import BackendUnavailableError

NOT_HERE = 3


def main(model: str, photos: list[str]) -> int:
    """Decodes and explains photographs; returns the exit code."""
    try:
        from nvidia import nvimgcodec
    except ImportError as exc:
        return absent(f"nvImageCodec is missing ({exc})")
    try:
        session = sigcam.load(model, "tensorrt" if model.endswith(".engine") else "ort-cuda")
    except BackendUnavailableError as exc:
        return absent(str(exc))
    with session:
        return explain(nvimgcodec, session, photos)


def explain(nvimgcodec: Any, session: Any, photos: list[str]) -> int:
    """Prints what is seen in each photograph that can be decoded; returns the exit code."""
    rgb = nvimgcodec.DecodeParams(
        apply_exif_orientation=True, sample_format=nvimgcodec.SampleFormat.I_RGB
    )
    streams = [nvimgcodec.CodeStream(photo) for photo in photos]
    images = nvimgcodec.Decoder(device_id=0).decode(streams, params=rgb)
    readable = [(p, image) for p, image in zip(photos, images, strict=True) if image is not None]
    for photo in set(photos) - {photo for photo, _ in readable}:
        print(f"{photo}: nvImageCodec can't decode it", file=sys.stderr)
    if not readable:
        return 1
    # The images are held until the results are there: `to_host` waits for them.
    found = session.explain_device([image for _, image in readable])
    best = found.class_ids.to_host()[:, 0]
    for (photo, _), class_id, heatmaps in zip(readable, best, found.heatmaps, strict=True):
        names = session.spec.class_names
        print(f"{photo}: {names[class_id] if names else class_id}, heatmaps {heatmaps.shape}")
    return 0 if len(readable) == len(photos) else 1


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and nvImageCodec: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
