"""The door ComfyUI knocks at: the nodes' extension and the folder of their help pages; nothing else.

The nodes are imported when ComfyUI asks for them, so that tests can import this package without ComfyUI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    from .nodes import Extension

    return Extension()
