"""The parts every screen is made of: text, plots, tables, dialogs, forms, actions. It has no code of a single
feature."""
