"""Making a model better at predicting a corpus. Knows no terminal: it reports through a callback."""
