"""Target genes, and prior ranks of auxiliary genes."""
