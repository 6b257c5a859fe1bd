"""The doctor's checks, by what they look at; each gives its result and raises nothing a user could not act on."""
