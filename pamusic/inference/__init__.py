"""The numbers of `model`, fast: caches, steps, kernels."""
