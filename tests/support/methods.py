"""The methods in the graph by what their artifacts can give."""

from sigcam.export import METHODS

WITH_WEIGHTS = [name for name, method in METHODS.items() if method.gives_weights]
"""Those of one target layer whose CAM is made of features and CAM weights."""
