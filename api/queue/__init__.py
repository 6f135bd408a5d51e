"""A request, from its submission to its end."""
