"""Generate music with a model: connect ids and performances."""
