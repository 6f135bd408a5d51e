"""The prompt: written out by Gemma, and made what the transformer reads. Both are kept, so that Gemma may leave.

ComfyUI keeps the last result of a node. Here the last few texts of each text encoder are kept beside it, so that going
back to an earlier one does not bring Gemma to the device again.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import TEXT_LENGTH
from ..ltx.media.images import compress, from_float
from ..ltx.prompt.contexts import Recent, image_digest
from ..ltx.prompt.expand import expand
from ..ltx.prompt.text import encode_text
from . import memory
from .progress import INTERRUPTS, Progress, show_text
from .types import CATEGORY, TextEncoderIO, TextIO
from .widgets import widget

_recent = Recent()


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
        asked = ("context", text.strip())
        context = _recent.get(text_encoder, asked)
        if context is None:
            memory.use(text_encoder, text_encoder.connectors, memory_required=memory.TEXT_MEMORY)
            context = encode_text(text_encoder.gemma, text_encoder.connectors.module, text)
            context = replace(context, video=memory.to_graph(context.video), audio=memory.to_graph(context.audio))
            _recent.put(text_encoder, asked, context)
        progress(1, 1)
        if context.truncated:
            logging.warning("The prompt has %d tokens; the %d after the first %d are left out.", context.tokens,
                            context.tokens - TEXT_LENGTH, TEXT_LENGTH)  # fmt: skip
        return io.NodeOutput(context)


class ExpandPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VExpandPrompt",
            display_name="LTX A2V Expand Prompt",
            category=f"{CATEGORY}/Conditioning",
            description="Gemma writes a full prompt from a short one, for a shot that is driven by sound; with a first "
            "image it looks at that too. What it writes appears here as it writes. Where it fails, your own prompt "
            "is used, and the report says why. A prompt enhancer.",
            inputs=[
                TextEncoderIO.Input("text_encoder", tooltip="From Load Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="The idea of the shot: who, where, and whether the sound is speech, song, music or noise, "
                    "for Gemma does not hear it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same text; another one another wording. Link it with the noise's "
                    "seed, and one number stands for the whole video.",
                ),
                widget(
                    "enable_prompt_expansion",
                    "enabled",
                    tooltip="Off uses the prompt as it is: for one that is written out already.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The first image, unless its strength is 0. Of a batch the first is taken.",
                ),
            ],
            outputs=[
                io.String.Output("expanded", display_name="prompt", tooltip="For the positive Text Encode."),
                io.String.Output("report", display_name="report", tooltip="The prompt as used, or why it is yours."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, text_encoder: memory.TextEncoder, prompt: str, seed: int, enabled: bool, image: Tensor | None = None
    ) -> io.NodeOutput:
        if not enabled:
            return io.NodeOutput(prompt, f"prompt: {_line(prompt)}")
        progress = Progress(cls.hidden.unique_id)
        picture = None if image is None else compress(from_float(image[0].cpu()))
        asked = ("expansion", prompt, seed, image_digest(picture))

        def on_token(done: int, total: int, text: str) -> None:
            progress(done, total)
            show_text(cls.hidden.unique_id, text)

        expansion = _recent.get(text_encoder, asked)
        if expansion is None:
            memory.use(text_encoder, memory_required=memory.TEXT_MEMORY)
            expansion = expand(
                text_encoder.gemma, prompt, seed=seed, image=picture, on_token=on_token, interrupts=INTERRUPTS
            )
            if expansion.expanded:  # what failed is tried again
                _recent.put(text_encoder, asked, expansion)
        show_text(cls.hidden.unique_id, expansion.prompt if expansion.expanded else expansion.reason)
        if expansion.reason:
            logging.warning("LTX A2V: %s", expansion.reason)
        said = [f"prompt: {_line(expansion.prompt)}", *filter(None, [expansion.reason])]
        return io.NodeOutput(expansion.prompt, "\n".join(said))


def _line(text: str) -> str:
    """A text on one line, as a report has it."""
    return " ".join(text.split())


NODES = (TextEncode, ExpandPrompt)
