"""`sigcam serve`: prediction and map over the Open Inference Protocol."""
