"""Writes the artifact: one forward-only ONNX graph with its spec and parity certificate."""
