"""Many pieces on disk: found, tokenized, written and read."""
