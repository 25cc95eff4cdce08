"""An exported model converted: quantised, or built into a TensorRT engine."""
