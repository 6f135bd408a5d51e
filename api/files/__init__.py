"""Files: media of requests, uploads, and results."""
