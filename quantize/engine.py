"""ONNX Runtime with the graph as it is written, to look at the values inside."""

from __future__ import annotations

from typing import Any

import onnxruntime


def open_unfused(model: str | bytes, threads: int | None) -> Any:
    """A session that computes every value of the graph, none fused away.

    Args:
        model: path of a file, or its bytes.
        threads: of the engine; None leaves it to the engine.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
