"""Clamp-and-combine on the GPU: from features and CAM weights to normalised heatmaps.

Of ours, only `sigcam.core.files` is imported here, for the cache of compiled kernels.
"""
