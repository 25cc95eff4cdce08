"""Loads a PyTorch classifier, splits it, and gives it a sigmoid branch."""
