"""Converts artifacts to other precisions, and measures what that costs.

    source.py        reads the float32 artifact that is converted
    images.py        chooses which of the user's images calibrate, and which are held out
    selection.py     selects the nodes that may compute in 8 bits
    calibrate.py     finds the range of every value between these nodes
    int8.py          converts to 8 bits, static, per channel, with QDQ nodes
    int8_head.py     stores the sigmoid branch's large matrices in 8 bits
    float16.py       stores all weights in 16 bits
    layer_errors.py  corrects the biases, and ranks the layers by what their rounding costs
    fidelity.py      measures the fidelity report
    run.py           does all of it, and writes the file

A further way to convert is one function from a `Source` to a model, and one entry in `run.py`.
"""

from __future__ import annotations

from sigcam.convert.quantize.run import QuantizeOptions, quantize_artifact

__all__ = ["QuantizeOptions", "quantize_artifact"]
