"""The commands beside the pipeline: doctor and download."""
