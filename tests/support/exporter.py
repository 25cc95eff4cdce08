"""PyTorch's exporter, without what it does again for each graph."""

from __future__ import annotations

import functools
import sys


def read_operators_once():
    """Has the exporter keep its operators, whose sources it parses anew before each export.

    They are 500, and parsing them is half the time of a toy's export. Nothing happens before
    something has imported the exporter: it takes seconds, which most tests can do without.
    """
    module = sys.modules.get("torch.onnx._internal._lazy_import")
    if module is None or "get_torchlib_ops" in vars(module.onnxscript_apis):
        return
    apis = module.onnxscript_apis
    apis.get_torchlib_ops = functools.cache(lambda: apis.__getattr__("get_torchlib_ops")())
