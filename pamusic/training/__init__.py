"""Train a model to predict a corpus. Knows no terminal: it reports through a callback."""
