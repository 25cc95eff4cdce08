"""Heatmaps made on the GPU, shared by the backends that run there."""
