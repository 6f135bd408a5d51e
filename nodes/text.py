"""Nodes for the prompt: Gemma writes it out and encodes it for the transformer.

ComfyUI keeps only the last result of a node. This module keeps the last few texts of each text encoder, so that going
back to an earlier text does not load Gemma onto the device again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..ltx.characters import check_text
from ..ltx.diffusion.conditioning import TextContext
from ..ltx.errors import InputError
from ..ltx.media.images import compress
from ..ltx.prompt.contexts import Recent, image_digest
from ..ltx.prompt.expand import Expansion, expand
from ..ltx.prompt.expander import GEMMA_4, GEMMA_4_FILE, check_expander, load_expander
from ..ltx.prompt.text import OnLayer, encode_texts
from . import activations, files, memory
from .fetching import blocks_stay
from .loaders import gemma_names, gemma_path
from .progress import INTERRUPTS, Progress, report, show_text, shown
from .taking.picture import to_picture
from .types import CATEGORY, TextEncoderIO, TextIO
from .widgets import aliases, widget

_recent = Recent()
_writers = Recent(kept=1)
"""The expander that was last used beside a text encoder; it is freed with that encoder."""
OWN = "text encoder"


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VTextEncode",
            display_name="LTX A2V Text Encode",
            category=f"{CATEGORY}/Conditioning",
            description="Encodes a prompt with Gemma and the connectors. Use one node for the positive prompt, and a "
            "second one for the negative prompt if the guidance's CFG scale is not 1. It runs again only when the text "
            "changes.",
            **aliases("positive prompt", "negative prompt", "clip text encode"),
            inputs=[
                TextEncoderIO.Input("text_encoder", tooltip="From Load Text Encoder."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="What the video shows. It describes the picture; the audio drives the motion. The model "
                    "reads up to 1024 tokens.",
                ),
            ],
            outputs=[TextIO.Output("context", display_name="text", tooltip="For a sampler: positive or negative.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text_encoder: memory.TextEncoder, text: str) -> io.NodeOutput:
        check_encoder(text_encoder)
        check_text("text", text)
        progress = Progress(cls.hidden.unique_id)
        progress(0, 1)
        (context,) = encoded(text_encoder, [text], progress)
        progress(1, 1)
        said = [report(cls, sentence) for sentence in context.told("text")]
        return io.NodeOutput(context, ui=shown(said[0])) if said else io.NodeOutput(context)


def encoded(text_encoder: memory.TextEncoder, texts: Sequence[str], on_layer: OnLayer) -> list[TextContext]:
    """The contexts of texts, of which none is computed again that this encoder had lately. The others take Gemma's
    layers together, and `on_layer` is called after each."""
    keys = [("context", text.strip()) for text in texts]
    found = {key: _recent.get(text_encoder, key) for key in keys}
    missing = [key for key, context in found.items() if context is None]
    if missing:
        memory.use(text_encoder, memory_required=activations.TEXT_MEMORY)
        gemma = text_encoder.gemma
        made = encode_texts(gemma, text_encoder.connectors.module, [text for _, text in missing], on_layer=on_layer)
        together = len(missing) > 1 and not text_encoder.paged
        with blocks_stay(gemma.model.model.language_model.layers, gemma.model.device, together):
            for key, context in zip(missing, made, strict=True):
                found[key] = replace(
                    context, video=memory.to_graph(context.video), audio=memory.to_graph(context.audio)
                )
                _recent.put(text_encoder, key, found[key])
    return [found[key] for key in keys]


def expander_input() -> io.Input:
    """The input for the model that writes prompts out."""
    return io.Combo.Input(
        "expander",
        options=[OWN, *gemma_names()],
        default=OWN,
        optional=True,
        tooltip=f"The model that writes the prompt. {OWN} is LTX-2.3's own Gemma 3. LTX-2.5's text encoder "
        f"cannot write: choose an instruct model in models/text_encoders, {GEMMA_4_FILE}, the folder of {GEMMA_4} or "
        "of a larger one, or a Gemma 3 12B-it. It takes the most likely words, so the seed does not matter.",
    )


class ExpandPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VExpandPrompt",
            display_name="LTX A2V Expand Prompt",
            category=f"{CATEGORY}/Conditioning",
            description="Gemma writes a full prompt from a short one, for a shot that is driven by sound. It also "
            "looks at the first image if there is one. The text appears on the node while it is written. If that "
            "fails, your own prompt is used, and the report says why.",
            **aliases("prompt enhancer", "enhance prompt"),
            inputs=[
                TextEncoderIO.Input("text_encoder", tooltip="From Load Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="The idea of the shot: who, where, and whether the sound is speech, song, music or noise, "
                    "because Gemma does not hear it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same text, and another seed gives another wording. Link it with "
                    "the noise's seed, so that one number defines the whole video.",
                ),
                widget(
                    "enable_prompt_expansion",
                    "enabled",
                    tooltip="Off uses your prompt unchanged, for a prompt that is written out already.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The first image, unless its strength is 0. A batch gives its first image.",
                ),
                expander_input(),
            ],
            outputs=[
                io.String.Output("expanded", display_name="prompt", tooltip="For the positive Text Encode."),
                io.String.Output(
                    "report", display_name="report", tooltip="The prompt that is used, and why it is your own."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, expander: str | None = None) -> bool | str:
        return check_choice(expander)

    @classmethod
    def fingerprint_inputs(cls, expander: str | None = OWN, **_: object) -> str:
        return stamp_of(expander)

    @classmethod
    def execute(
        cls,
        text_encoder: memory.TextEncoder,
        prompt: str,
        seed: int,
        enabled: bool,
        image: Tensor | None = None,
        expander: str = OWN,
    ) -> io.NodeOutput:
        check_encoder(text_encoder)
        check_text("prompt", prompt)
        if not enabled:
            return io.NodeOutput(prompt, f"prompt: {line(prompt)}")
        picture = None if image is None else compress(to_picture(image))
        expansion = Writing(cls.hidden.unique_id, text_encoder, seed, picture, expander).write(prompt)
        said = expansion.prompt if expansion.expanded else expansion.reason
        show_text(cls.hidden.unique_id, said)
        notes = [f"prompt: {line(expansion.prompt)}", *filter(None, [expansion.reason])]
        return io.NodeOutput(expansion.prompt, "\n".join(notes), ui=shown(said))


class Writing:
    """How prompts are written out: by which model, from which seed and picture. node_id: the node that shows them."""

    def __init__(
        self, node_id: str, text_encoder: memory.TextEncoder, seed: int, picture: Tensor | None, expander: str
    ) -> None:
        self._node_id, self._encoder, self._seed, self._picture = node_id, text_encoder, seed, picture
        self._path = _expander_path(expander)
        self._progress = Progress(node_id)

    def write(self, prompt: str) -> Expansion:
        """The prompt written out, which is not done again if this encoder had it lately."""
        path = self._path
        wrote = (self._seed, None) if path is None else (None, (path, files.stamp(path)))
        key = ("expansion", prompt, *wrote, image_digest(self._picture))
        expansion = _recent.get(self._encoder, key)
        if expansion is None:
            writer = self._encoder if path is None else _writer(self._encoder, path)
            memory.use(writer, memory_required=activations.TEXT_MEMORY)
            expansion = expand(
                writer.gemma,
                prompt,
                seed=self._seed,
                image=self._picture,
                greedy=path is not None,
                on_token=self._told,
                interrupts=INTERRUPTS,
            )
            if expansion.expanded:  # a failed expansion is tried again next time
                _recent.put(self._encoder, key, expansion)
        if expansion.reason:
            logging.warning("LTX A2V: %s", expansion.reason)
        return expansion

    def _told(self, done: int, total: int, text: str) -> None:
        self._progress(done, total)
        show_text(self._node_id, text)


def check_encoder(text_encoder: memory.TextEncoder | None) -> None:
    """Raises InputError if there is none: a LoRA node gives one only if one is linked to it."""
    if text_encoder is None:
        raise InputError("text_encoder: nothing comes in; link Load Text Encoder to the text_encoder of the LoRA node.")


def _expander_path(name: str) -> Path | None:
    """The folder or file of an expander, None for the text encoder. Raises InputError if it cannot write prompts."""
    if name == OWN:
        return None
    path = gemma_path(name)
    check_expander(path)
    return path


def check_choice(expander: str | None) -> bool | str:
    """The verdict on an expander for `validate_inputs`."""
    return files.verdict(_expander_path, expander)


def stamp_of(expander: str | None) -> str:
    """A text that changes when the expander's files change; "" for the text encoder."""
    return files.stamped(_expander_path, expander)


def _writer(text_encoder: memory.TextEncoder, path: Path) -> memory.Writer:
    """The expander, which is loaded anew only if another one was used last."""
    key = (path, files.stamp(path))
    writer = _writers.get(text_encoder, key)
    if writer is None:
        writer = memory.hold_writer(lambda chosen, **fp8: load_expander(path, chosen, **fp8), "auto")
        _writers.put(text_encoder, key, writer)
    return writer


def line(text: str) -> str:
    """A text on one line, for a report."""
    return " ".join(text.split())


NODES = (TextEncode, ExpandPrompt)
