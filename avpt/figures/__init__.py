"""Figures of arrays, in one colour-blind safe style, one or two columns wide."""
