"""Manifest and store: what the clips are, how they lie on disk, and whether all of it is sound."""
