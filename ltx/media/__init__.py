"""Sound, pictures and videos as files."""
