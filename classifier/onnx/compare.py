"""Compares a graph that was read with the original file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigcam.classifier.onnx.front import Input
from sigcam.core.cpus import thread_limit
from sigcam.core.errors import ModelError, ParityError

_IMAGES = 3
_TINY = 1e-20
"""Logits below are zeros; what is divided by it must be zero too."""
_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = {1: np.float32, 2: np.uint8, 10: np.float16, 11: np.float64}


def probe_images(found: Input, size: tuple[int, int]) -> Any:
    """Makes images like those that a graph is given, float32 [3, C, H, W].

    Args:
        found: what the graph takes.
        size: height and width.
    """
    generator = np.random.default_rng(0)
    shape = (_IMAGES, found.channels, *size)
    if found.range is not None or found.is_bytes:
        limit = 255 if found.is_bytes else found.range
        return np.round(generator.uniform(0, 255, shape)).astype(np.float32) * (limit or 1) / 255
    return generator.standard_normal(shape).astype(np.float32)


def open_session(
    model: Path | bytes, folder: Path | None = None, weights: Mapping[str, Any] | None = None
) -> Any:
    """Opens a graph in ONNX Runtime, to be run as it says, for a few images.

    Args:
        model: the file, or its bytes.
        folder: of the files that hold weights of a graph given as bytes.
        weights: arrays that take the place of weights in such files, by name.

    Raises:
        Exception: ONNX Runtime's own, where it is missing or can't run the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is an error of ours
    options.intra_op_num_threads = thread_limit() or 0
    # A few images only: threads that wait in a loop would cost more than they save.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # As the file says: with optimisations, products with weights of 8 bits may be rounded.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    if isinstance(model, bytes) and folder is not None:
        options.add_session_config_entry(_FOLDER, str(folder.resolve()))
    values = {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in (weights or {}).items()}
    options.add_external_initializers(list(values), list(values.values()))
    # Its fallback would print that it tries the same once more.
    return ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def original_logits(
    model: Path | bytes, output: str, found: Input, images: Any, folder: Path | None = None
) -> Any:
    """Runs a file in ONNX Runtime.

    Args:
        model: the file, or its bytes.
        output: the output's name.
        found: what the graph takes.
        images: float32 [B, C, H, W].
        folder: of the files that hold weights of a graph given as bytes.

    Returns:
        The output of all images, [B, ...].

    Raises:
        ModelError: ONNX Runtime is missing or can't run the file.
    """
    given = np.transpose(images, (0, 2, 3, 1)) if found.nhwc else images
    given = np.ascontiguousarray(given).astype(_TYPES.get(found.element, np.float32))
    number = found.batch or len(given)
    parts = [np.resize(given[i : i + number], (number, *given.shape[1:]))
             for i in range(0, len(given), number)]  # fmt: skip
    try:
        session = open_session(model, folder)
        results = [session.run([output], {found.name: part})[0] for part in parts]
    except ImportError as exc:
        raise ModelError(
            "reading a model.onnx needs ONNX Runtime, to compare with; pip install 'sigcam[export]'"
        ) from exc
    except Exception as exc:  # ONNX Runtime's own errors have no common base
        raise ModelError(
            f"ONNX Runtime can't run the file itself, so there is nothing to compare with: "
            f"{str(exc).partition(chr(10))[0]}; give a file that it runs"
        ) from exc
    rows = [np.asarray(r).reshape(len(p), -1) for r, p in zip(results, parts, strict=True)]
    return np.concatenate(rows)[: len(images)].astype(np.float32)


def check_logits(read: torch.Tensor, original: Any, tolerance: float, where: str) -> float:
    """Refuses a graph that was read wrongly.

    Args:
        read: the output of the graph that was read, [B, ...].
        original: of the file, [B, C].
        tolerance: the largest difference, as a share of the largest logit.
        where: the file's name, for messages.

    Returns:
        The largest difference, likewise.

    Raises:
        ModelError: the original's values aren't finite.
        ParityError: the difference is larger.
    """
    if not np.isfinite(original).all():
        raise ModelError(
            f"the logits of {where} must be finite, ONNX Runtime gives NaN or infinite ones; "
            "export the model from a good checkpoint"
        )
    rows = read.reshape(len(read), -1).numpy()
    if rows.shape != original.shape:
        raise ParityError(
            f"the graph read from {where} must give the shape of ONNX Runtime's output, "
            f"{list(original.shape)}, it gives {list(rows.shape)}; export it with a dynamic batch"
        )
    error = float(np.abs(rows - original).max() / max(_TINY, float(np.abs(original).max())))
    if not error <= tolerance:
        raise ParityError(
            f"the graph read from {where} must give ONNX Runtime's logits to within {tolerance:g}, "
            f"it differs by {error:.3g}; please report the file's operators, and export it with "
            "others or another opset until then"
        )
    return error
