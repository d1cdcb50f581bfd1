"""Tries to break the service, and ends in a table: `python -m prove`."""
