"""Music from a model: where ids and performances meet."""
