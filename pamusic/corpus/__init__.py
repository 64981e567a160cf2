"""Corpora: find, tokenize, write and read many pieces on disk."""
