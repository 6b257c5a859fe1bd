"""Jobs on many objects: downloads, deletes, copies, restores, counts; each with progress and cancel."""
