"""Spots as arrays: counts, expression, scaling, and those that can be trained on."""
