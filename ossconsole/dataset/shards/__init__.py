"""Datasets as tar shards: their plan, the tars as they are built and uploaded, and their index."""
