"""The Upload mode: source, plan, progress and summary of an upload."""
