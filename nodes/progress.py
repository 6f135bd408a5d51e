"""What a person sees of a running node: its bar, a preview of the latents; and the way to stop it."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import latent_preview
from PIL import Image
from torch import Tensor

PREVIEW_SIDE = 512


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


def preview(latent: Tensor) -> Image.Image:
    """The middle frame of a latent [1, 128, F, H, W], small, in colours that are a guess: the factors are LTXV's."""
    ltxv = comfy.latent_formats.LTXV()
    painter = latent_preview.Latent2RGBPreviewer(ltxv.latent_rgb_factors, ltxv.latent_rgb_factors_bias)
    middle = latent.shape[2] // 2
    picture = painter.decode_latent_to_preview(latent[:, :, middle : middle + 1].float())
    scale = PREVIEW_SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
