"""Reads and writes sound, pictures and videos."""
