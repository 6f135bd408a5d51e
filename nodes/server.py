"""ComfyUI's server, for nodes that send to the page or read what is queued."""

from __future__ import annotations

import sys
from typing import Any


def running_server() -> Any:
    """ComfyUI's server; None outside of ComfyUI, where an import would start a part of it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
