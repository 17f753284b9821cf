"""The training loop, optimiser and metrics, and the run-time around them."""
