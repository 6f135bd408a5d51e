"""The errors that end a run without a fault of the program, and those that say that memory ran out."""

from __future__ import annotations

INTERRUPTED = "interrupted; nothing was written"  # what an interrupted command says


NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "invalid buffer size")
"""How torch says that memory ran out; the last one is for a tensor that is larger than any an Apple GPU can hold."""


class InputError(ValueError):
    """A mistake in the user's input. The text is one sentence that names the file or field and says what to do."""

    __module__ = "ltx_a2v"  # ComfyUI's error panel shows it; the true one is the whole path of the pack's folder


def no_such_file(name: object) -> InputError:
    """The error for a file of the user's that is not there."""
    return InputError(f"{name}: no such file; check the name and the folder.")


class FlaggedError(RuntimeError):
    """The safety checker flagged a result that shall then be refused. The text is one sentence."""


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that memory ran out, on any device. torch's own class is known by its name, because this
    file is imported where torch may be missing."""
    text = str(error).lower()
    in_words = any(words in text for words in NO_MEMORY)
    named = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    return named or isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and in_words)
