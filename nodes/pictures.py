"""Pictures from ComfyUI's input folder, read as the engine reads them: within its limits, and a first frame alone."""

from __future__ import annotations

from comfy_api.latest import io

from ..ltx.media.images import load_image
from ..ltx.media.suffixes import PICTURE
from . import files, memory
from .types import CATEGORY


class LoadImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VLoadImage",
            display_name="LTX A2V Load Image",
            category=f"{CATEGORY}/Loaders",
            description="Reads a picture as the command does: upright, in sRGB, transparent parts black; of an "
            "animation the first frame. A picture that is too large is refused before its pixels are read.",
            inputs=[
                io.Combo.Input(
                    "image",
                    options=files.uploads("image", PICTURE),
                    upload=io.UploadType.image,
                    tooltip="A file of ComfyUI's input folder; upload one with the button. At most 80 megapixels.",
                ),
            ],
            outputs=[io.Image.Output("picture", display_name="image", tooltip="For First Image or End Image.")],
        )

    @classmethod
    def validate_inputs(cls, image: str | None = None) -> bool | str:
        return files.verdict(files.upload, image)

    @classmethod
    def fingerprint_inputs(cls, image: str) -> str:
        return files.stamp(files.upload(image))

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        pixels = load_image(files.upload(image))
        return io.NodeOutput(memory.to_graph(pixels.float().div_(255)[None]))


NODES = (LoadImage,)
