"""The embedded OSS-compatible server, run as its own process."""
