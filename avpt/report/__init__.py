"""The page of an experiment: its artifacts are read and described section by section."""
