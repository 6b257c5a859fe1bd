"""Runs and uploads of other processes of the same user, watched and controlled through their sockets."""
