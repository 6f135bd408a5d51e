"""Widgets for the endpoint's parameters. Default, range, choices and tooltip come from ltx/request.py."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from typing import Any

from comfy_api.latest import io

from ..ltx.request import PARAMETERS

ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in signature(io.Int.Input.__init__).parameters else {}
"""Arguments of an input that few people change: newer hosts fold it away. Empty on hosts that do not know it."""


def aliases(*words: str) -> dict[str, Any]:
    """Arguments of a schema: words under which a search finds the node. Empty on hosts that do not know them."""
    known = any(field.name == "search_aliases" for field in fields(io.Schema))
    return {"search_aliases": list(words)} if known else {}


class _Limit(float):
    """A limit of an input that takes FLOAT and INT. ComfyUI makes no number of a text in such an input, but compares it
    with the limits. A text that is a number is within them as that number; of anything else the node says what is wrong
    with it."""

    def __lt__(self, value: Any) -> bool:
        return super().__lt__(_number(value, self))

    def __gt__(self, value: Any) -> bool:
        return super().__gt__(_number(value, self))


def _number(value: Any, otherwise: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def widget(
    parameter: str,
    name: str | None = None,
    *,
    step: float = 0.05,
    tooltip: str | None = None,
    display_name: str | None = None,
    linked_whole: bool = False,
) -> io.Input:
    """The input for an endpoint parameter, under its own name or another one. Its range is the range of the engine.

    linked_whole: an INT may be linked to a widget for any number, which ComfyUI otherwise refuses.
    """
    known = PARAMETERS[parameter]
    options = {"id": name or parameter, "tooltip": tooltip or known.help, "default": known.default}
    options["display_name"] = display_name
    limits = {"min": known.hard_minimum, "max": known.hard_maximum}
    if known.kind == "switch":
        return io.Boolean.Input(**options)
    if known.kind == "choice":
        return io.Combo.Input(**options, options=list(known.choices))
    if known.kind == "text":
        return io.String.Input(**options, multiline=True)
    if known.kind == "integer":
        return io.Int.Input(**options, **limits, step=int(step) or 1)
    if linked_whole:
        limits = {name: None if limit is None else _Limit(limit) for name, limit in limits.items()}
    number = io.Float.Input(**{**options, "default": float(known.default or 0)}, **limits, step=step)
    return io.MultiType.Input(number, [io.Int]) if linked_whole else number
