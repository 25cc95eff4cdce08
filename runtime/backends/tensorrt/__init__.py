"""TensorRT engines, run by TensorRT itself."""
