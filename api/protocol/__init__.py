"""The hosted protocol over HTTP: who is answered, the routes, and their description. Nothing is computed here."""
