"""Checkpoints: their content, resuming from one, and writing one without risk to the previous one."""
