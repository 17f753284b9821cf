"""Manifest and store: what the clips are, how they are stored on disk, and whether a store is intact."""
