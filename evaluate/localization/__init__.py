"""Metrics against boxes and masks, by the conventions of Choe et al. 2020."""
