"""The parity check: the exported graph against PyTorch."""
