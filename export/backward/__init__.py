"""The way back from logits to features, written with forward operators."""
