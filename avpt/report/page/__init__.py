"""One self-contained page of an experiment."""
