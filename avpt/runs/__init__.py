"""Run folders, what they were made from, groups of runs, and trained models in use."""
