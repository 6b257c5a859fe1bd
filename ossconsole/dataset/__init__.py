"""Datasets: sample formats, the manifest, previews, and the packages that find, upload and pack samples."""
