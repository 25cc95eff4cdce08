"""One file for each image format: what its header says, and how it is decoded."""
