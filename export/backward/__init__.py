"""Writes the backward pass from logits to features with forward operators."""
