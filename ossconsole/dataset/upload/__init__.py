"""The upload of a dataset or of plain files: plan, preparation, pipeline, journal, progress, verification."""
