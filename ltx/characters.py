"""Refuses text with half of a character, and says what no file on Windows may be named. JSON and file names can carry a
lone surrogate, such as one half of an emoji, and nothing that writes text can write it."""

from __future__ import annotations

import json
import os
import re

from .errors import InputError

HALF = re.compile(r"[\ud800-\udfff]")
WINDOWS = os.name == "nt"
LONGEST_PATH = 259 if WINDOWS else 4095  # see `path_length`
FORBIDDEN = '<>:"|?*'  # besides slashes; Windows and the disks made for it have no such names
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
"""Devices of Windows, whatever suffix follows."""


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


def fault_on_windows(name: str) -> str:
    """Why no file or folder on Windows can have that name, in words that follow it; "" if one can."""
    if bad := next((sign for sign in name if sign in FORBIDDEN or sign < " " or sign == "\x7f"), None):
        return f"has {bad!r}, which no Windows name can have; use - or _ instead"
    if name[-1] in ". ":
        return "has a part that ends with a dot or a blank; take it away"
    return f"has {name!r}, which is a device on Windows; choose another name" if RESERVED.fullmatch(name) else ""


def path_length(path: object) -> int:
    """The length of a path or name as the system counts it: in 16-bit units on Windows, where an emoji has two, else in
    bytes."""
    return len(str(path).encode("utf-16-le", "surrogatepass")) // 2 if WINDOWS else len(os.fsencode(str(path)))
