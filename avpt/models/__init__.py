"""Encoders, the ABRi layer, and fusion."""
