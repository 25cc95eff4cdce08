"""The Open Inference Protocol over gRPC, with the messages that tritonclient ships."""
