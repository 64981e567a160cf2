"""Music <-> integers. Knows NumPy and `music`; knows no torch."""
