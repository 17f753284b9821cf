"""A store held against its contract, file by file; nothing here writes."""
