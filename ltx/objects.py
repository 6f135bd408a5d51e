"""Reads the objects that a request has as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .errors import InputError

SHOWN = 60  # characters of a wrong name or value in a message


def members(kind: type, name: str, value: Any, wanted: str) -> Mapping[str, Any]:
    """The value of the parameter `name`, an object with some of the fields of the dataclass `kind`. wanted: what the
    parameter takes. Raises InputError if it is no object or has other names."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: the value is not {wanted}.")
    known = [each.name for each in fields(kind)]
    if unknown := sorted(map(repr, value.keys() - set(known))):
        raise InputError(f"{name}: {unknown[0][:SHOWN]} is unknown; use {', '.join(known)}.")
    return value


def settings(kind: type, name: str, value: Any, example: str) -> Mapping[str, Any] | None:
    """As `members`, of a parameter that is also a switch: null and false are None, and true is an object without
    fields."""
    if value is None or value is False:
        return None
    return {} if value is True else members(kind, name, value, f"true, false or an object like {example}")


def check_number(name: str, field: str, value: Any, low: float, high: float) -> None:
    """Raises InputError if a field of the parameter `name` is no number of that range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise InputError(f"{name}: {field} is {shown(value)}; give a number from {low:g} to {high:g}.")


def shown(value: Any) -> str:
    """A wrong value, cut to SHOWN characters."""
    return f"{value!r:.{SHOWN}}"
