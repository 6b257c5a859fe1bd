"""The operations of the service, by area, and the table that finds them."""
