"""The parts of the dashboard as lines, drawn from a RunView: no widget, no clock, no I/O."""
