"""How good predictions are: metrics of genes in sections, their ceilings, p-values and differences."""
