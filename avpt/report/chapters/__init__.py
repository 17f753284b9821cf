"""One file a question that the page of an experiment answers."""
