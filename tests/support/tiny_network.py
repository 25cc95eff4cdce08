"""Classifiers that export in seconds; the benchmark takes them by file and name."""

from torch import nn


def tiny():
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12)
    )


def mlp():
    """A head whose first matrix has 2**20 entries, the fewest that are worth 8 bits."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 28, 28), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 12),
    )  # fmt: skip
