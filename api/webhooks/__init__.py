"""Tells a client's server that its request has ended."""
