"""Holds the table from ONNX operators to torch functions, by kind; importing this fills it."""

from __future__ import annotations

from sigcam.classifier.onnx.operators import activations as activations
from sigcam.classifier.onnx.operators import arithmetic as arithmetic
from sigcam.classifier.onnx.operators import convolutions as convolutions
from sigcam.classifier.onnx.operators import indexing as indexing
from sigcam.classifier.onnx.operators import normalisations as normalisations
from sigcam.classifier.onnx.operators import pools as pools
from sigcam.classifier.onnx.operators import products as products
from sigcam.classifier.onnx.operators import quantised as quantised
from sigcam.classifier.onnx.operators import reductions as reductions
from sigcam.classifier.onnx.operators import resizing as resizing
from sigcam.classifier.onnx.operators import shapes as shapes
