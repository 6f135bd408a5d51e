"""The commands other than the pipeline: doctor and download."""
