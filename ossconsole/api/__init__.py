"""The public API for training scripts; `import ossconsole` offers its names, and loads them on first use."""
