"""What a person sees of a running node: its bar, a preview of the latents, a text; and the way to stop it."""

from __future__ import annotations

import logging
import sys

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import latent_preview
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

PREVIEW_SIDE = 512
INTERRUPTS = (comfy.model_management.InterruptProcessingException,)
"""What an interrupt is: raised by `check`, and by every layer that fetches its weights."""


class Progress:
    """A node's progress bar. Moving it is also where an interrupt takes hold."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.bar: comfy.utils.ProgressBar | None = None

    def check(self) -> None:
        """Ends the node here if the person has interrupted the run."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def __call__(self, done: int, total: int, preview: Image.Image | None = None) -> None:
        self.check()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
        self.bar.update_absolute(done, total, preview and ("JPEG", preview, PREVIEW_SIDE))


def show_text(node_id: str, text: str) -> None:
    """Writes on the node in the browser that queued the run; newer text replaces it. Nothing without a server."""
    server = sys.modules.get("server")  # not imported: importing ComfyUI's server outside of it starts half of one
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    send = getattr(instance, "send_progress_text", None)
    if send is not None and text:
        send(text, node_id, instance.client_id)


def report(node: type[io.ComfyNode], text: str) -> str:
    """Says what a node has to report on the node itself and in the log, and returns it for the output."""
    if node.hidden is not None:
        show_text(node.hidden.unique_id, text)
    logging.info("LTX A2V: %s", text)
    return text


def preview(latent: Tensor) -> Image.Image:
    """The middle frame of a latent [1, 128, F, H, W], small, in colours that are a guess: the factors are LTXV's."""
    ltxv = comfy.latent_formats.LTXV()
    painter = latent_preview.Latent2RGBPreviewer(ltxv.latent_rgb_factors, ltxv.latent_rgb_factors_bias)
    middle = latent.shape[2] // 2
    picture = painter.decode_latent_to_preview(latent[:, :, middle : middle + 1].float())
    scale = PREVIEW_SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
