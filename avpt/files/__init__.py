"""Files that are complete or absent, the records that they hold, and the checks made when they are read."""
