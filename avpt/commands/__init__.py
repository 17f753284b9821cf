"""One command is one story here, told top to bottom."""
