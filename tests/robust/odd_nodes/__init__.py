"""A pack of nodes for a real ComfyUI that hand over the values of `values.py`. tests/host/conftest.py installs it."""

from __future__ import annotations

from typing import Any

from . import values


def _node(kind: str, kinds: dict[str, tuple[Any, Any]]) -> type:
    """A node that takes a value of that type and gives it as another pack would."""

    def run(self: object, value: Any, change: str) -> tuple[Any]:
        return (kinds[change][0](value),)

    inputs = {"required": {"value": (kind,), "change": (list(kinds),)}}
    members = {"RETURN_TYPES": (kind,), "FUNCTION": "run", "CATEGORY": "odd", "run": run}
    return type(f"Odd{kind}", (), {**members, "INPUT_TYPES": classmethod(lambda cls: inputs)})


def _source(kind: str, kinds: dict[str, tuple[Any, Any]]) -> type:
    """A node that gives a value of that type."""

    def run(self: object, choice: str) -> tuple[Any]:
        return (kinds[choice][0],)

    inputs = {"required": {"choice": (list(kinds),)}}
    members = {"RETURN_TYPES": (kind,), "FUNCTION": "run", "CATEGORY": "odd", "run": run}
    return type(f"Odd{kind}", (), {**members, "INPUT_TYPES": classmethod(lambda cls: inputs)})


NODE_CLASS_MAPPINGS = {
    "OddAudio": _node("AUDIO", values.AUDIO),
    "OddImage": _node("IMAGE", values.IMAGE),
    "OddLatent": _node("LATENT", values.LATENT),
    "OddSigmas": _source("SIGMAS", values.SIGMAS),
    "OddNoise": _source("NOISE", values.NOISE),
    "OddMask": _node("MASK", values.MASK),
}
