"""Sizes and switches of a transformer, read from its tensors: what a file without a configuration still says.

The result has the names of the `config.transformer` metadata. What tensors cannot tell (the type of the positions, the
scales of the timesteps) is as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

PREFIX = "model.diffusion_model."
BLOCK = f"{PREFIX}transformer_blocks.0."
SWITCHES = {
    "ff_bias": f"{BLOCK}ff.net.0.proj.bias",
    "audio_ff_bias": f"{BLOCK}audio_ff.net.0.proj.bias",
    "use_prompt_adaln_single": f"{PREFIX}prompt_adaln_single.linear.weight",
    "use_keyframes_abs_pos_embedding": f"{PREFIX}keyframes_abs_pos_embedding",
}
"""Switch → the tensor that a file has where it is on."""
STATIC = f"{BLOCK}prompt_scale_shift_table"
"""The modulation of the text, which every block has from 2.3 on, with or without a part that depends on the noise."""

Shape = Callable[[str], tuple[int, ...]]


def switches(names: Iterable[str]) -> dict[str, bool]:
    """Which of SWITCHES are on, by the names of the tensors."""
    names = frozenset(names)
    return {switch: name in names for switch, name in SWITCHES.items()}


def transformer(names: Iterable[str], shape: Shape) -> dict[str, Any]:
    """Sizes and switches of the transformer with these original names; {} if there is none."""
    names = frozenset(names)
    found: dict[str, Any] = {}
    for stream in ("", "audio_"):
        gates, query, text = (
            f"{BLOCK}{stream}{layer}.weight" for layer in ("attn1.to_gate_logits", "attn1.to_q", "attn2.to_k")
        )
        if not {gates, query, text} <= names:
            return {}
        heads = shape(gates)[0]
        found |= {
            f"{stream}num_attention_heads": heads,
            f"{stream}attention_head_dim": shape(query)[0] // heads,
            f"{stream}cross_attention_dim": shape(text)[1],
        }
        for name, layer, axis in (("in", "patchify_proj", 1), ("out", "proj_out", 0)):
            if (weight := f"{PREFIX}{stream}{layer}.weight") in names:
                found[f"{stream}{name}_channels"] = shape(weight)[axis]
    return {**found, "num_layers": _count(names, f"{PREFIX}transformer_blocks."), **switches(names)}


def connectors(names: Iterable[str], shape: Shape) -> dict[str, Any]:
    """Sizes of both connectors with these original names; {} if they are not there."""
    names = frozenset(names)
    found: dict[str, Any] = {}
    for stream, said in (("video", ""), ("audio", "audio_")):
        part = f"{PREFIX}{stream}_embeddings_connector."
        gates, query = (f"{part}transformer_1d_blocks.0.attn1.{layer}.weight" for layer in ("to_gate_logits", "to_q"))
        registers = f"{part}learnable_registers"
        if not {gates, query, registers} <= names:
            return {}
        heads = shape(gates)[0]
        found |= {
            f"{said}connector_num_attention_heads": heads,
            f"{said}connector_attention_head_dim": shape(query)[0] // heads,
            f"{said}connector_num_layers": _count(names, f"{part}transformer_1d_blocks."),
            "connector_num_learnable_registers": shape(registers)[0],
        }
    return found


def _count(names: Iterable[str], prefix: str) -> int:
    """How many different numbers follow that prefix."""
    return len({found[1] for name in names if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))})
