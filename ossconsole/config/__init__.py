"""Profiles, credential sources, endpoints, Secret and errors: what every other layer may import."""
