"""Loop, optimiser, metrics, and the run-time around them."""
