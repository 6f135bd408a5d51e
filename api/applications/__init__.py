"""The applications that this server answers, by id. Each has inputs, defaults, and a graph that it fills in.

To add one, describe it in a file of its own as audio_to_video.py does, and list it here.
"""

from __future__ import annotations

from collections.abc import Mapping

from .application import Application
from .audio_to_video import AUDIO_TO_VIDEO, DISTILLED, DISTILLED_WITH_LORAS, WITH_LORAS
from .from_video import FROM_VIDEO, REFERENCES_25
from .ltx_2_5 import FAST, OURS, PRO

APPLICATIONS: Mapping[str, Application] = {
    application.id: application
    for application in (
        AUDIO_TO_VIDEO,
        WITH_LORAS,
        DISTILLED,
        DISTILLED_WITH_LORAS,
        *FROM_VIDEO,
        FAST,
        PRO,
        *OURS,
        *REFERENCES_25,
    )
}
