"""What sigcam costs and what it is worth, measured; run as `python -m benchmarks.NAME`."""
