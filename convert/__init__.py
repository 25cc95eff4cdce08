"""Converting an exported model: to another precision, or to a TensorRT engine."""
