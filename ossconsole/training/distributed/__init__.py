"""The ranks of a run: their decisions, their collectives, and starting those of this machine."""
