"""Diagnosis of encoders and runs: dead channels, linear probes, tests between groups of runs."""
