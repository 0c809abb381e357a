"""The trainer's side: one process or several ranks, whole or sharded, with or without LoRA."""
