"""Reading images and videos, preparing them for a network, and drawing heatmaps over them."""
