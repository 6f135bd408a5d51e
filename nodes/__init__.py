"""The nodes of the graph, listed in the order in which data flows. All code that uses ComfyUI is in this folder.

A node is a schema and a few lines that call `ltx/`. This module imports ComfyUI, so only the root's
`comfy_entrypoint` imports it.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    audio,
    clips,
    conditioning,
    edges,
    kernels,
    latents,
    loaders,
    loras,
    output,
    parts,
    pictures,
    queued,
    reference_sound,
    safety,
    sampling,
    speakers,
    text,
    windows,
)

NODES: tuple[type[io.ComfyNode], ...] = (
    *loaders.NODES,
    *loras.NODES,
    *kernels.NODES,
    *audio.NODES,
    *pictures.NODES,
    *text.NODES,
    *windows.NODES,
    *parts.NODES,
    *latents.NODES,
    *conditioning.NODES,
    *speakers.NODES,
    *reference_sound.NODES,
    *clips.NODES,
    *edges.NODES,
    *sampling.NODES,
    *safety.NODES,
    *output.NODES,
)
queued.watch()


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
