"""Object storage: listing, objects, transfers, endpoint probe, errors; the only importer of oss2."""
