"""The lists and media of one known data set each, read into rows of a manifest."""
