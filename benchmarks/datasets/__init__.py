"""Whole data sets: the paper's tables, training choices, what an evaluation costs."""
