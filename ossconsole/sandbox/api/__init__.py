"""The operations of the OSS API, by resource, and their routing table."""
