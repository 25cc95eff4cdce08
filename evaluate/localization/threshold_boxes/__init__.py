"""The boxes of a heatmap at every threshold, without a contour search for each."""
