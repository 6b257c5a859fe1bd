"""Datasets: sample formats, preparation, manifest, upload pipeline and its journal."""
