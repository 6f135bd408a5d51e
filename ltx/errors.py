"""What a run may end with that is no fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in what was given: one sentence that names the file or field and says what to do."""


class FlaggedError(RuntimeError):
    """The safety checker flagged a result, and refusing it was asked for: one sentence."""
