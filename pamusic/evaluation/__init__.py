"""How good a model is, in numbers. Knows no terminal."""
