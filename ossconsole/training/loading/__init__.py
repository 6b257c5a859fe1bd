"""From objects to batches: the connector, its reader processes, the loader, and failover between the endpoints."""
