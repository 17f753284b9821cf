"""Known data sets, one per module: their lists and media become rows of a manifest."""
