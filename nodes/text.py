"""The prompt: a text into what the transformer reads. ComfyUI keeps the result, so Gemma can leave memory behind it."""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy_api.latest import io

from ..ltx.text import LENGTH, encode_text
from . import memory
from .progress import Progress
from .types import CATEGORY, TextEncoderIO, TextIO


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VTextEncode",
            display_name="LTX A2V Text Encode",
            category=f"{CATEGORY}/Conditioning",
            description="Encodes a prompt with Gemma and the connectors. One node for what is to be seen, and one for "
            "what is not where the guidance's CFG scale is not 1. Runs again only when the text changes.",
            inputs=[
                TextEncoderIO.Input("text_encoder", tooltip="From Load Text Encoder."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="What is to be seen. It describes the picture; the audio drives the motion. Up to 1024 "
                    "tokens are read.",
                ),
            ],
            outputs=[TextIO.Output("context", display_name="text", tooltip="For a sampler: positive or negative.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text_encoder: memory.TextEncoder, text: str) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        progress(0, 1)
        memory.use(text_encoder, text_encoder.connectors, memory_required=memory.TEXT_MEMORY)
        context = encode_text(text_encoder.gemma, text_encoder.connectors.module, text)
        progress(1, 1)
        if context.truncated:
            logging.warning("The prompt has %d tokens; the %d after the first %d are left out.", context.tokens,
                            context.tokens - LENGTH, LENGTH)  # fmt: skip
        placed = replace(context, video=memory.to_graph(context.video), audio=memory.to_graph(context.audio))
        return io.NodeOutput(placed)


NODES = (TextEncode,)
