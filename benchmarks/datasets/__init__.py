"""Evaluations of whole data sets: the paper's tables, training choices, what an evaluation costs."""
