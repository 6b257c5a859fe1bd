"""Owner of the terminal: native prints kept off the screen, signals, lost SSH, crash report."""
