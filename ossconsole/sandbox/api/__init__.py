"""The operations of the service, by resource, and the table that finds the one a request asks for."""
