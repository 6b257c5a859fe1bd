"""What the Upload screen shows: the plan, the upload under way, its end, and the dialog that picks a source."""
