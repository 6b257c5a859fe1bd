"""The doctor's checks, by subject; each returns its result and raises nothing that a user can cause."""
