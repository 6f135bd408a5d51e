"""Files: what requests name on its way in, uploads, and results on their way out."""
