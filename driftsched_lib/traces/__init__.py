"""Traces of requests: read row by row, served as a load, or kept as the shape of their lengths."""
