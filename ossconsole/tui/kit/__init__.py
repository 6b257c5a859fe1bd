"""The parts every screen is made of: text, plots, tables, dialogs, forms, actions. Knows no feature."""
