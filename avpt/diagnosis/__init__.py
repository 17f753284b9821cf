"""What encoders and runs did: dead channels, linear probes, groups of runs."""
