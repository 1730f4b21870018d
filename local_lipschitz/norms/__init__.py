"""Certified spectral norms of linear operators; knows no network."""
