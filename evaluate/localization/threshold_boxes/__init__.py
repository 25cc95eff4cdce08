"""Finds the boxes of a heatmap at every threshold, without a contour search for each.

search.py    all of it: groups thresholds, and finds the boxes of each group
levels.py    which neighbouring thresholds give as many pieces and holes
tracking.py  boxes of pieces that neither split nor merge, at many thresholds at once
contours.py  all contours of a binary image, faster than OpenCV's findContours
"""
