"""The machine: processes, terminal, progress, seeds."""
