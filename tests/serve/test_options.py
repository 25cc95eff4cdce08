"""Limits are checked when they are given."""

from __future__ import annotations

import pytest

from sigcam.core.errors import UsageError
from sigcam.serve.options import ServeOptions


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_delay": -1},
        {"queue_images": 7},
        {"queue_images": 15, "request_images": 16},
        {"request_images": 0},
        {"request_bytes": 0},
        {"max_pixels": 0},
        {"max_classes": 0},
        {"max_passes": 0},
        {"response_bytes": 0},
        {"request_timeout": 0},
        {"request_timeout": float("inf")},
        {"body_timeout": 0},
        {"drain_delay": -1},
        {"drain_timeout": -1},
        {"image_formats": ()},
        {"image_formats": ("SVG",)},
        {"model_control": 1},
        {"batch_size": 8, "queue_images": 7, "request_images": 1},
        {"parallel_runs": 0},
        {"queue_images": 0},
        {"niceness": -1},
        {"niceness": 20},
    ],
)
def test_out_of_range(changes):
    with pytest.raises(UsageError):
        ServeOptions(**changes)


def test_in_range():
    made = ServeOptions(batch_size=1, queue_images=1, request_images=1, drain_timeout=0)
    assert made.image_formats == ("JPEG", "PNG", "WebP")
