"""The machine: processes, workers, terminal, progress, seeds."""
