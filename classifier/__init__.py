"""The PyTorch side: loading a classifier, splitting it, and giving it a sigmoid branch."""
