"""What is inside a checkpoint, read without torch and without running code from it."""
