"""The errors that end a run without a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in the user's input. The text is one sentence that names the file or field and says what to do."""


class FlaggedError(RuntimeError):
    """The safety checker flagged a result that shall then be refused. The text is one sentence."""
