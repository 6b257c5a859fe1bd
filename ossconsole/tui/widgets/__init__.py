"""The console's own widgets: drawn line by line, so that an update sends only the cells that changed."""
