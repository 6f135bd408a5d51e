"""The door ComfyUI knocks at: the nodes' extension, the folder of their help pages, and the API's routes.

The nodes are imported when ComfyUI asks for them, so that tests can import this package without ComfyUI. The routes
are registered as ComfyUI imports the pack, before its server starts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    from .nodes import Extension

    return Extension()


def _running_server() -> Any:
    """ComfyUI's server, if this is it; not imported, for its import outside of ComfyUI starts half of one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


if (_server := _running_server()) is not None:
    from .api import register

    register(_server)
