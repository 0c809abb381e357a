"""How fast the parts of a run are, each against something known: ``python -m dina.rl.bench``."""
