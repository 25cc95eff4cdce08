"""Makes the ONNX files: one module for each world they come from.

A module holds a table FILES of functions that write one file each, and is run as

    python -m benchmarks.coverage.onnx_sources.makers.MODULE NAME FOLDER

by the Python of the environment that has the packages; `common.py` needs NumPy alone, and none
imports sigcam. So what a map is compared with comes from outside of it.
"""
