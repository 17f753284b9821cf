"""Checking a store against its contract, file by file; nothing here writes."""
