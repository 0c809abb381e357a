"""``dina dashboard``: a local page on runs, while they train and afterwards."""
