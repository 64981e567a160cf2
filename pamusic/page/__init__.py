"""Performances -> one HTML file that shows and plays them."""
