"""Artifacts in other precisions: select the nodes, convert them, measure what it costs.

    source.py     the float32 artifact that is converted
    images.py   which of the user's images calibrate, and which are held out
    selection.py  which nodes may compute in 8 bits
    backend.py     ONNX Runtime with every value of a graph to be seen
    calibrate.py  the range of every value between them
    static.py     a way to convert: 8 bits, static, per channel, QDQ
    storage.py    a way to convert: weights stored in 16 bits
    sigmoid_head.py  a way to convert: the sigmoid branch's large matrices stored in 8 bits
    aside.py      layers computed again, rounded, beside the float32 ones
    bias.py       the mean of the rounding error, taken back by the biases
    blame.py      which layers hurt
    gate.py       the fidelity report
    run.py        all of it, and the file

A further way to convert is one function from a `Source` to a model, and one entry in `run.py`.
"""

from __future__ import annotations

from sigcam.convert.quantize.run import QuantizeOptions as QuantizeOptions
from sigcam.convert.quantize.run import quantize_artifact as quantize_artifact
