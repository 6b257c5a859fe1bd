"""The Train mode: dashboard, new run, recorded runs, replay, comparison."""
