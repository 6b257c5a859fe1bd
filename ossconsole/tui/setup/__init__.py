"""The parts of the Setup screen: its panels, and the dialogs that change what they show."""
