"""Run folders, where things came from, groups of runs, and a trained model in use."""
