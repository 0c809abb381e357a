"""``dina prepare``: from many rows to those that can teach something."""
