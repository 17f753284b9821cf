"""Files that are complete or absent, what they hold, and what is checked where they enter."""
