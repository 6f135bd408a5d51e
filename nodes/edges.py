"""A node that draws the edges of a clip, for an IC-LoRA that follows drawings."""

from __future__ import annotations

from comfy_api.latest import io

from ..ltx.errors import InputError
from ..ltx.media.clip import Clip
from ..ltx.media.edges import LARGEST, STRONG, WEAK, EdgeClip
from .clips import VIDEO_IN
from .types import ClipIO
from .widgets import aliases


class Edges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        limits = {"min": 1, "max": LARGEST}
        return io.Schema(
            node_id="LTXA2VEdges",
            display_name="LTX A2V Edges",
            category=VIDEO_IN,
            description="Draws the edges of a clip, white on black, for an IC-LoRA that was trained on such drawings: "
            "the new video keeps the outlines and movements of the clip, and nothing of its colours.",
            **aliases("canny", "control", "outline", "lineart", "ic-lora"),
            inputs=[
                ClipIO.Input("clip", tooltip="From Clip."),
                io.Int.Input(
                    "weak",
                    default=WEAK,
                    **limits,
                    tooltip="Edges fainter than this are not drawn; a lower value draws more.",
                ),
                io.Int.Input(
                    "strong",
                    default=STRONG,
                    **limits,
                    tooltip="Edges stronger than this are drawn, and those between weak and strong that touch them.",
                ),
            ],
            outputs=[ClipIO.Output("drawn", display_name="clip", tooltip="For Reference.")],
        )

    @classmethod
    def execute(cls, clip: Clip, weak: int, strong: int) -> io.NodeOutput:
        if weak > strong:
            raise InputError(f"weak: {weak} is above strong, which is {strong}; choose a lower one.")
        return io.NodeOutput(EdgeClip(clip, weak, strong))


NODES = (Edges,)
