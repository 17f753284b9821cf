"""Figures from arrays: one style, colour-blind safe, in sizes of one and two columns."""
