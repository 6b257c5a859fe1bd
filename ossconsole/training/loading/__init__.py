"""From objects to batches: the connector, its reader processes, the loader, and the choice of the endpoint on failure."""
