"""Where clips are decoded."""
