"""Kernels on tensors and arrays that know nothing of genes: Pearson, losses, eigenvectors, hyper-gradient."""
