"""What a performance is, and how it is read, written, heard and seen. Knows NumPy; knows no tokens, no torch."""
