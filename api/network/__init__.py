"""Other servers: which addresses may be called, and how."""
