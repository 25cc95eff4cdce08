"""sigcam: the prediction and its class evidence map from one forward pass."""
