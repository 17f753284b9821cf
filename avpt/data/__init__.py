"""Manifest, media, store, and what is done to a batch before a model sees it."""
