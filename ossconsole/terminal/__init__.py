"""The terminal: taking it over and restoring it, signals and lost connections, the log and crash reports."""
