"""What the kernels take and could reach, computed without a GPU."""
