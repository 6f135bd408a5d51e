"""The hosted protocol over HTTP: access, routes, and their description. Nothing is computed here."""
