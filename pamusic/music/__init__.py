"""Performances: how to represent, read, write, play and describe them. Knows NumPy; knows no tokens, no torch."""
