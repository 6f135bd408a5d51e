"""Widgets for the endpoint's parameters. Default, range, choices and tooltip come from ltx/request.py."""

from __future__ import annotations

from comfy_api.latest import io

from ..ltx.request import PARAMETERS


def widget(
    parameter: str,
    name: str | None = None,
    *,
    step: float = 0.05,
    tooltip: str | None = None,
    display_name: str | None = None,
) -> io.Input:
    """The input for an endpoint parameter, under its own name or another one. Its range is the range of the engine."""
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
    return io.Float.Input(**{**options, "default": float(known.default or 0)}, **limits, step=step)
