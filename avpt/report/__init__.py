"""The story of an experiment, section by section: read from its artifacts, told in the blocks of a page."""
