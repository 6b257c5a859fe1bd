"""Object storage: one bucket through an endpoint, listings, jobs, the probe, checkpoints; the only importer of oss2."""
