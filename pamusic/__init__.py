"""Symbolic piano music with Perceiver AR: tokenize, train, sample, render."""

__version__ = "0.1.0"
