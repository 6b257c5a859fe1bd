"""Checkpoints: their contents, writing without risk to the last one, resuming, and the claim on a prefix."""
