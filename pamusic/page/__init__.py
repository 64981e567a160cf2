"""HTML pages that show and play performances."""
