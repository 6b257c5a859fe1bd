"""Browsing: what the screen shows and does, apart from its widgets."""
