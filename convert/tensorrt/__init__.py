"""Building TensorRT engines of exported models."""
