"""Adds the sigmoid branch to a classifier and trains it."""
