"""ONNX files that people have: made on the spot, read, exported, and compared with their source."""
