"""The console: app, screens, widgets and styles; the only importer of Textual."""
