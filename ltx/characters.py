"""Refuses text with half of a character. JSON and file names can carry a lone surrogate, such as one half of an emoji,
and nothing that writes text can write it."""

from __future__ import annotations

import json
import re

from .errors import InputError

HALF = re.compile(r"[\ud800-\udfff]")


def is_whole(value: object) -> bool:
    """Whether no text of a JSON value, at any depth, has half of a character."""
    if isinstance(value, str):
        return HALF.search(value) is None
    return HALF.search(json.dumps(value, ensure_ascii=False)) is None


def check_text(name: str, text: str) -> str:
    """Returns the text. Raises InputError, which begins with `name`, if it has half of a character."""
    if (found := HALF.search(text)) is None:
        return text
    raise InputError(
        f"{name}: character {found.start() + 1} is half of a character ({ascii(found[0])[1:-1]}, a lone surrogate); "
        f"write it whole or remove it."
    )


def check_name(name: str, path: object) -> None:
    """Raises InputError, which begins with `name`, if a path's text cannot be written in UTF-8."""
    if HALF.search(str(path)):
        raise InputError(f"{name}: the file name {str(path)!a} is no valid text; rename the file or its folder.")
