"""Compute the logits of `model` fast: caches, decode steps, kernels."""
