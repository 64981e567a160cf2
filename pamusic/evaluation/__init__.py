"""Measure the quality of models and their music. Knows no terminal."""
