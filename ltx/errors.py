"""The one exception a user may cause. Everything else that is raised is a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in what was given: one sentence that names the file or field and says what to do."""
