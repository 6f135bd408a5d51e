"""The door ComfyUI knocks at: the nodes' extension, the folder of their help pages, and the API's routes.

The nodes are imported when ComfyUI asks for them, so that tests can import this package without ComfyUI. The routes
are registered when ComfyUI imports the pack, before its server starts. If a needed package is missing, too old or
broken, the pack is off: one line in the log says what to install, and ComfyUI starts as it would without the pack.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"
LONGEST = 300  # characters of another package's error in the log


def _said(error: Exception) -> str:
    """Another package's error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]


@cache
def _extension() -> type[ComfyExtension] | None:
    """The nodes' extension; None where they cannot be imported here, which is logged once."""
    from .ltx import versions  # here, for pytest imports this file by itself where the folder's name is no package's

    try:
        if wrong := versions.problem():
            logging.error("LTX A2V: the pack is off: %s", wrong)
            return None
        from .nodes import Extension
    except Exception as error:  # a broken installation raises nearly anything
        logging.error("LTX A2V: the pack is off: %s: %s.", _said(error), versions.remedy())
        logging.debug("LTX A2V: where that comes from", exc_info=True)
        return None
    return Extension


async def comfy_entrypoint() -> ComfyExtension:
    from comfy_api.latest import ComfyExtension

    class Off(ComfyExtension):
        async def get_node_list(self) -> list:
            return []

    return (_extension() or Off)()


def _running_server() -> Any:
    """ComfyUI's server, if this is it; not imported, for its import outside of ComfyUI starts half of one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _open_api(server: Any) -> None:
    """Registers the HTTP API's routes. If that is impossible, the log says why, and the nodes still work."""
    from .ltx import versions
    from .ltx.errors import InputError

    try:
        from .api.install import install
    except Exception as error:
        logging.error("LTX A2V: the HTTP API is off: %s: %s.", _said(error), versions.remedy())
        logging.debug("LTX A2V: where that comes from", exc_info=True)
        return
    try:
        install(server)
    except InputError as error:
        logging.error("LTX A2V: the HTTP API is off: %s", error)
    except Exception:  # a bug of this program, which must not end ComfyUI
        logging.exception("LTX A2V: the HTTP API is off: a bug in it prevents its start.")


if (_server := _running_server()) is not None and _extension() is not None:
    _open_api(_server)
