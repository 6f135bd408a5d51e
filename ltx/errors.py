"""The errors that end a run without a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in the user's input. The text is one sentence that names the file or field and says what to do."""

    __module__ = "ltx_a2v"  # ComfyUI's error panel shows it; the true one is the whole path of the pack's folder


class FlaggedError(RuntimeError):
    """The safety checker flagged a result that shall then be refused. The text is one sentence."""
