"""Other servers: which addresses the API may call, and how."""
