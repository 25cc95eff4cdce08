"""Checks an exported graph against PyTorch, and reports how closely it follows."""
