"""Dynamics -> confidence -> mask ratios (arXiv 2302.03533, FusT)."""
