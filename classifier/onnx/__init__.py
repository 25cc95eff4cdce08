"""Reads a classifier out of a bare ONNX file into a module of torch operators."""
