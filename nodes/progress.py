"""The display of a running node (progress bar, preview of the latents, text), and how an interrupt stops it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import latent_preview
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ..ltx.diffusion.sample import grid
from ..ltx.diffusion.samplers import Hooks
from ..ltx.diffusion.tokens import Tokens
from ..ltx.left import COMPILING, TimeLeft, told
from ..ltx.windows import Window
from .server import running_server

PREVIEW_SIDE = 512
FORMATS = ("LTXAV", "LTXV")
"""ComfyUI's formats of latents that a preview may take its colours from, the best first. Older hosts lack the first, or
have it without factors."""
TEXT = "ltx_a2v_text"
"""The event that brings a node's text to the browser, and the key of the same text in a node's UI output. It is not
"text", because newer hosts list every text of that name among the results of a run. web/reports.js shows both."""
INTERRUPTS = (comfy.model_management.InterruptProcessingException,)
"""The exceptions of an interrupt. `check` raises them, and so does every layer that fetches its weights."""


class Progress:
    """A node's progress bar. Each update also checks for an interrupt."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.bar: comfy.utils.ProgressBar | None = None

    def check(self) -> None:
        """Raises ComfyUI's interrupt if the user has interrupted the run."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def __call__(self, done: int, total: int, preview: Image.Image | None = None) -> None:
        self.check()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
        self.bar.update_absolute(done, total, preview and ("JPEG", preview, PREVIEW_SIDE))


class StageProgress:
    """The progress of a stage over the windows of a film: the bar counts the steps of all windows that are sampled
    here, and the node shows the window and the time left. A clip of one window has the bar alone. In a step that
    compiles blocks the node says so. here: the numbers of these windows, None for all."""

    def __init__(
        self, progress: Progress, windows: Sequence[Window], steps: int, here: Collection[int] | None = None
    ) -> None:
        self._progress, self._windows = progress, len(windows)
        self._here = list(range(len(windows))) if here is None else sorted(here)
        self._left = TimeLeft([[windows[number].length for number in self._here]])
        progress(0, len(self._here) * steps)

    def hooks(self, number: int, like: Tensor) -> Hooks:
        """The hooks of a window. like: a latent of its size."""
        position = self._here.index(number)
        self._left.begin(0, position)
        place = f"window {number + 1} of {self._windows}"
        compiling = False  # whether this step compiles

        def on_step(done: int, total: int, x0: Tokens) -> None:
            nonlocal compiling
            seconds = self._left.step(done, total, usual=not compiling)
            if self._windows > 1:  # before the bar, whose line in the API's log has the window
                text = place if seconds is None else f"{place}, {told(seconds)}"
                show_text(self._progress.node_id, text, window=f"{place}, step {done}/{total}")
            elif compiling:
                show_text(self._progress.node_id, "compiled")
            compiling = False
            self._progress(position * total + done, len(self._here) * total, preview(grid(x0.video, like)))

        def on_compile() -> None:
            nonlocal compiling
            if not compiling:  # a step compiles several forms of the block
                text = f"{place}, {COMPILING}" if self._windows > 1 else COMPILING
                show_text(self._progress.node_id, text)
            compiling = True

        return Hooks(on_step, self._progress.check, on_compile=on_compile)


class Merging:
    """Counts the weights that LoRAs are merged into, `total` in all, and shows them on the running node once a second.
    Before each it checks for an interrupt. It shows a text and no bar, because a sampler's bar counts its steps."""

    EVERY = 1.0  # seconds

    def __init__(self, total: int) -> None:
        context = get_executing_context()
        self._node = None if context is None else context.node_id
        self._done, self._total, self._told = 0, total, time.monotonic()
        self._shown = False

    def __call__(self) -> None:
        """Begins with the next weight. Raises ComfyUI's interrupt if the user has interrupted the run."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done += 1
        if self._node is not None and time.monotonic() - self._told >= self.EVERY:
            show_text(self._node, f"merging LoRAs, weight {self._done} of {self._total}")
            self._told, self._shown = time.monotonic(), True

    def end(self) -> None:
        if self._shown:
            show_text(self._node, "LoRAs are merged")


def show_text(node_id: str, text: str, window: str = "") -> None:
    """Writes a text on the node, in the browser that queued the run; a newer text replaces it. Without a server it does
    nothing. window: the window and the step that a sampler is at, for the API's log.

    ComfyUI's own text of a running node would vanish at the end of the run, in frontends since 1.58.
    """
    server = running_server()
    if server is not None and server.client_id is not None and text:  # without a client it would reach every browser
        running = {"prompt_id": getattr(server, "last_prompt_id", None), "window": window} if window else {}
        server.send_sync(TEXT, {"node": node_id, "text": text, **running}, server.client_id)


def report(node: type[io.ComfyNode], text: str) -> str:
    """Writes a node's report on the node and in the log, and returns it for the output."""
    if node.hidden is not None:
        show_text(node.hidden.unique_id, text)
    logging.info("LTX A2V: %s", text)
    return text


def shown(text: str) -> dict[str, list[str]]:
    """The UI output of a node with that text. It stays in the history, and ComfyUI sends it again for a cached node
    that a later run reads from."""
    return {TEXT: [text]}


def reported(node: type[io.ComfyNode], *values: object, text: str) -> io.NodeOutput:
    """The output of a node whose last output is its report."""
    return io.NodeOutput(*values, report(node, text), ui=shown(text))


def _switched_off() -> bool:
    """Whether the user wants no previews: by the page's setting of the running prompt, or by ComfyUI's start. Its
    default is none, too, but nobody chose that."""
    server = running_server()
    running = list(server.prompt_queue.currently_running.values()) if server is not None else []
    asked = running[0][3].get("preview_method", "default") if running else "default"
    if asked != "default":
        return asked == LatentPreviewMethod.NoPreviews.value
    chosen = any(argument.startswith("--preview-method") for argument in sys.argv)
    return chosen and args.preview_method == LatentPreviewMethod.NoPreviews


def preview(latent: Tensor) -> Image.Image | None:
    """A small picture of the middle frame of a latent [1, 128, F, H, W]; None if previews are switched off. Its colours
    are approximate; hosts that know LTX-2 have factors of its own latents, older ones those of LTXV."""
    if _switched_off():
        return None
    known = (getattr(comfy.latent_formats, name)() for name in FORMATS if hasattr(comfy.latent_formats, name))
    colours = next(each for each in known if each.latent_rgb_factors)
    painter = latent_preview.Latent2RGBPreviewer(colours.latent_rgb_factors, colours.latent_rgb_factors_bias)
    middle = latent.shape[2] // 2
    picture = painter.decode_latent_to_preview(latent[:, :, middle : middle + 1].float())
    scale = PREVIEW_SIDE / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
