"""Closed forms: reduced-rank ridge, what validation picks along it, predictability of genes, and baselines."""
