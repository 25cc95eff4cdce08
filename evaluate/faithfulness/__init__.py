"""Metrics of what a changed image does to the prediction."""
