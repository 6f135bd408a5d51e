"""The way out: latents to frames, frames and sound to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..ltx.audio import soundtrack
from ..ltx.decode import Tiling, decode_video, to_uint8
from ..ltx.errors import InputError
from ..ltx.latents import SPACE_SCALE, pixel_frames
from ..ltx.video import VideoFile, frame_rate, write_video
from . import memory
from .audio import to_track
from .latents import samples_of
from .progress import Progress
from .types import CATEGORY, VideoVaeIO
from .widgets import widget

OUTPUT = f"{CATEGORY}/Output"
CHUNK = 16  # frames handed to the encoder at a time


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        usual = Tiling()
        return io.Schema(
            node_id="LTXA2VDecode",
            display_name="LTX A2V Decode",
            category=OUTPUT,
            description="Latents to frames, in tiles of space and time that overlap and are blended. Smaller tiles "
            "take less memory. A clip that fits into one tile is decoded whole.",
            inputs=[
                VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
                io.Latent.Input("samples", tooltip="From the last sampler."),
                io.Int.Input(
                    "tile_size",
                    default=usual.pixels,
                    min=64,
                    max=8192,
                    step=32,
                    tooltip="Long side of a tile in pixels.",
                ),
                io.Int.Input(
                    "tile_overlap",
                    default=usual.pixel_overlap,
                    min=0,
                    max=4096,
                    step=32,
                    tooltip="Pixels that neighbouring tiles share; less than half the tile.",
                ),
                io.Int.Input(
                    "tile_frames", default=usual.frames, min=16, max=8192, step=8, tooltip="Frames of a tile."
                ),
                io.Int.Input(
                    "tile_frame_overlap",
                    default=usual.frame_overlap,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Frames that successive tiles share; less than half the tile.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="The frames.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        samples: dict[str, Any],
        tile_size: int,
        tile_overlap: int,
        tile_frames: int,
        tile_frame_overlap: int,
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        tiling = Tiling(tile_frames, tile_frame_overlap, tile_size, tile_overlap)
        latent = samples_of(samples)
        height, width = (side * SPACE_SCALE for side in latent.shape[3:])
        frames = pixel_frames(latent)
        room = memory.decoding_memory(
            video_vae.module, min(frames, tile_frames), min(height, tile_size), min(width, tile_size)
        )
        (vae,) = memory.use(video_vae, memory_required=room)
        progress.check()
        images = torch.empty(frames, height, width, 3)
        done = 0
        for chunk in decode_video(vae, latent, tiling, progress):
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
        return io.NodeOutput(memory.to_graph(images))


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSaveVideo",
            display_name="LTX A2V Save Video",
            category=OUTPUT,
            description="Writes an .mp4 (H.264, AAC) into ComfyUI's output folder, with the sound from its first "
            "sample on, untouched and cut to the video's length.",
            inputs=[
                io.Image.Input("images", tooltip="The frames, from Decode or any other node."),
                widget("fps", step=0.001),
                io.String.Input(
                    "filename_prefix",
                    default="video/ltx-a2v",
                    tooltip="Name of the file, with folders; a number is added. %year%, %month%, %day%, %width% and "
                    "the like are filled in.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="The sound, as it was loaded."),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, fps: float, filename_prefix: str, audio: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        frames, height, width = images.shape[:3]
        folder, name, subfolder = _destination(filename_prefix, width, height)
        rate = frame_rate(fps)
        track = None if audio is None else soundtrack(to_track(audio), frames, rate)
        written = write_video(
            folder / name,
            _chunks(images),
            rate,
            track,
            metadata=_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo),
            on_frames=lambda done: progress(done, frames),
        )
        shown = ui.PreviewVideo([ui.SavedResult(name, subfolder, io.FolderType.output)])
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(written.path)),
            ui={**shown.as_dict(), "report": [_report(written, name, subfolder)]},
        )


def _destination(prefix: str, width: int, height: int) -> tuple[Path, str, str]:
    """Folder, file name and subfolder of the next video under that prefix. Errors: outside the output folder."""
    output = folder_paths.get_output_directory()
    outside = InputError(f"filename_prefix: {prefix!r} leads out of the output folder; give a name inside it.")
    if Path(output, prefix).resolve() == Path(output).resolve():
        raise InputError(f"filename_prefix: {prefix!r} names no file; give a name like video/ltx-a2v.")
    if not Path(output, prefix).resolve().is_relative_to(Path(output).resolve()):
        raise outside
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    return Path(folder), f"{stem}_{counter:05}_.mp4", subfolder


def _chunks(images: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(images), CHUNK):
        yield to_uint8(images[start : start + CHUNK, ..., :3].float().clamp(0, 1)).cpu()


def _metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """The graph, for dropping the file back into ComfyUI: as its own Save Video embeds it, unless it is told not to."""
    if args.disable_metadata:
        return {}
    found = {**(extra or {}), **({"prompt": prompt} if prompt is not None else {})}
    return {key: json.dumps(value) for key, value in found.items()}


def _report(video: VideoFile, name: str, subfolder: str) -> dict[str, Any]:
    """Facts about the file, as JSON. They reach ComfyUI's history."""
    facts = {key: value for key, value in vars(video).items() if key not in ("path", "metadata")}
    return {"filename": name, "subfolder": subfolder, **facts, "fps": str(video.fps), "duration": float(video.duration)}


NODES = (Decode, SaveVideo)
