"""Nodes for the output: decode latents to frames, save frames and sound to a file, and join reports."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.decode import decode_video, to_uint8
from ..ltx.diffusion.tiling import Tiling
from ..ltx.given import unheard
from ..ltx.job import TILING
from ..ltx.latents import Noise, NoiseSource, pixel_frames, pixel_size
from ..ltx.media.formats import FORMATS, choose
from ..ltx.media.rates import frame_rate
from ..ltx.media.safety import Watch
from ..ltx.restoring import restored
from . import activations, files, memory, safety
from .destination import check_prefix
from .film import Retake, forget, placed_in_film
from .parts import check_taken
from .progress import Progress, shown
from .progress import report as announce
from .taking.latent import samples_of
from .taking.noise import to_noise
from .taking.picture import to_frames
from .taking.sound import to_track
from .types import CATEGORY, RetakeIO, VideoVaeIO
from .widgets import ADVANCED, aliases, widget
from .writing import Target

OUTPUT = f"{CATEGORY}/Output"
REPORTS = 12  # texts that one Report joins
FOLDERS = ("output", "temp")  # ComfyUI's folders for a saved file


def _tiling_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "tile_size",
            default=TILING.pixels,
            min=0,
            max=8192,
            step=32,
            tooltip="Long side of a tile in pixels, from 64 on. 0: by the free memory, the whole frame if it fits. It "
            "is halved if memory runs out.",
            **ADVANCED,
        ),
        io.Int.Input(
            "tile_overlap",
            default=TILING.pixel_overlap,
            min=0,
            max=4096,
            step=32,
            tooltip="Pixels that neighbouring tiles share. Raise it if you see seams.",
            **ADVANCED,
        ),
        io.Int.Input(
            "tile_frames",
            default=TILING.frames,
            min=0,
            max=8192,
            step=8,
            tooltip="Frames of a tile, from 16 on. 0: by the free memory, the whole clip if it fits. They are halved "
            "if memory runs out.",
            **ADVANCED,
        ),
        io.Int.Input(
            "tile_frame_overlap",
            default=TILING.frame_overlap,
            min=0,
            max=4096,
            step=8,
            tooltip="Frames that successive tiles share. Raise it if the picture jumps between tiles.",
            **ADVANCED,
        ),
    ]


def _retake_input() -> io.Input:
    return RetakeIO.Input(
        "retake", optional=True, tooltip="From Retake: the kept part has the clip's own pixels, not decoded ones."
    )


def _noise_input() -> io.Input:
    return io.Noise.Input(
        "noise",
        optional=True,
        tooltip="What LTX-2.5's diffusion decoder starts from: next noise of the last sampler. Without it seed 0 is "
        "used. The convolutional decoder has no noise.",
    )


@dataclass(frozen=True)
class _Decoder:
    """A latent that is ready to be decoded, and the size of its frames."""

    vae: Any
    latent: Tensor
    tiling: Tiling
    frames: int
    height: int
    width: int
    noise: NoiseSource
    retake: Retake | None = None
    told: dict[str, str] = field(default_factory=dict)
    """Notes for the report, the last of each kind: the tiles, that memory ran out and they became smaller, and that
    the source is damaged."""

    @property
    def notes(self) -> list[str]:
        return list(self.told.values())

    def chunks(self, progress: Progress) -> Iterator[Tensor]:
        """Decodes and yields the frames, float32 [n, H, W, 3] in 0..1, some at a time."""
        return decode_video(
            self.vae,
            self.latent,
            self.tiling,
            progress,
            noise=self.noise,
            on_retry=self._retry,
            on_tiles=lambda sentence: self.told.update(tiles=sentence),
            free=management.soft_empty_cache,
        )

    def pictures(self, progress: Progress) -> Iterator[Tensor]:
        """The same as uint8, with the source's own pixels where a retake keeps them."""
        frames = (to_uint8(chunk) for chunk in self.chunks(progress))
        if self.retake is None:
            return frames
        plan = self.retake.plan(self.height, self.width)
        return restored(frames, self.retake.source, plan, lambda sentence: self.told.update(source=sentence))

    def _retry(self, note: str) -> None:
        logging.warning("LTX A2V: %s", note)
        self.told["retried"] = note


def _decoder(
    video_vae: memory.Handle,
    latent: dict[str, Any],
    tile_size: int,
    tile_overlap: int,
    tile_frames: int,
    tile_frame_overlap: int,
    noise: Any = None,
    retake: Retake | None = None,
) -> _Decoder:
    tiling = Tiling(tile_frames, tile_frame_overlap, tile_size, tile_overlap)
    samples = samples_of(latent)
    check_taken(latent)
    height, width = pixel_size(samples)
    frames = pixel_frames(samples)
    if retake is not None:
        retake.check("latent", frames)
        frames = retake.plan(height, width).written
    decoder = video_vae.decoder
    tiling = activations.fitting_tiles(decoder, samples, tiling)
    (vae,) = memory.use(decoder, memory_required=activations.decoding_memory(decoder.module, samples, tiling))
    source = Noise(0) if noise is None else to_noise(noise, {"samples": samples})
    return _Decoder(vae, samples, tiling, frames, height, width, source, retake)


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VDecode",
            display_name="LTX A2V Decode",
            category=OUTPUT,
            description="Decodes a latent to frames: whole if the free memory allows it, else in tiles that overlap in "
            "space and time and are blended. Smaller tiles take less memory.",
            **aliases("vae decode", "latent to images"),
            inputs=[
                VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
                io.Latent.Input("latent", tooltip="From the last sampler."),
                *_tiling_inputs(),
                _noise_input(),
                _retake_input(),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="The frames.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        latent: dict[str, Any],
        tile_size: int,
        tile_overlap: int,
        tile_frames: int,
        tile_frame_overlap: int,
        noise: Any = None,
        retake: Retake | None = None,
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        clip = _decoder(video_vae, latent, tile_size, tile_overlap, tile_frames, tile_frame_overlap, noise, retake)
        progress.check()
        images = torch.empty(clip.frames, clip.height, clip.width, 3)
        done = 0
        whole = clip.chunks(progress) if retake is None else (each.float().div(255) for each in clip.pictures(progress))
        for chunk in whole:
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
        said = "; ".join(clip.notes)  # at once, because a node shows its last text alone
        if said:
            announce(cls, said)
        return io.NodeOutput(memory.to_graph(images), ui=shown(said) if said else None)


def _file_inputs() -> list[io.Input]:
    return [
        widget("fps", step=0.001, tooltip="From Frame Count.", linked_whole=True),
        io.String.Input(
            "filename_prefix",
            default="video/ltx-a2v",
            tooltip="Name of the file, with folders; a number is added. %date:yyyy-MM-dd%, %RandomNoise.noise_seed% "
            "(any node's widget), %year%, %width% and similar names are replaced.",
        ),
        widget(
            "video_output_type",
            "format",
            tooltip="X264 plays everywhere; VP9 is for the web; PRORES4444 is for editing: its files are large, and "
            "browsers do not show them; GIF has no sound.",
        ),
        widget(
            "video_quality",
            "quality",
            tooltip="high looks like the frames. Lower it for small files; choose maximum for editing.",
        ),
        widget("video_write_mode", "write_mode"),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        io.Audio.Input("audio", optional=True, tooltip="The sound, from Decode Audio or Load Audio."),
        io.String.Input(
            "report", optional=True, lazy=True, force_input=True, tooltip="From Report. The text is stored in the file."
        ),
    ]


def _wanted(node: type[io.ComfyNode], inputs: dict[str, Any], *lazy: str) -> list[str]:
    """The lazy inputs that are still to be computed, for `check_lazy_status`.

    They are what the samplers make. So all else that the file takes is here before anything is sampled, and it is
    checked now. Raises InputError.
    """
    kind = choose("format", inputs["format"], FORMATS)
    choose("quality", inputs["quality"], kind.qualities)
    choose("write mode", inputs["write_mode"], kind.write_modes)
    frame_rate(inputs["fps"])
    folder = io.FolderType(files.choice("folder", inputs.get("folder", FOLDERS[0]), FOLDERS))
    check_prefix(inputs["filename_prefix"], kind=folder, hidden=node.hidden)
    if inputs.get("audio") is not None:
        to_track(inputs["audio"])
    return [name for name in lazy if name in inputs and inputs[name] is None]


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSaveVideo",
            display_name="LTX A2V Save Video",
            category=OUTPUT,
            description="Writes .mp4, .webm, .mov or .gif into ComfyUI's output folder, with the unchanged sound from "
            "its first sample on, cut to the video's length. If you drop the file on the canvas, its graph comes back "
            "(not from a .gif).",
            inputs=[
                io.Image.Input("images", lazy=True, tooltip="The frames, from Decode or any other node."),
                *_file_inputs(),
                *_optional_inputs(),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            **aliases("audio to video", "save mp4", "video with sound", "webm", "gif", "prores"),
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return files.verdict(check_prefix, filename_prefix)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        return _wanted(cls, inputs, "images", "report")

    @classmethod
    def execute(
        cls,
        images: Tensor,
        fps: float,
        filename_prefix: str,
        format: str = "X264 (.mp4)",
        quality: str = "high",
        write_mode: str = "balanced",
        audio: dict[str, Any] | None = None,
        report: str = "",
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        frames, height, width = to_frames(images).shape[:3]
        target = Target(filename_prefix, frames, height, width, fps, audio, format, quality, write_mode)
        return target.write(cls, safety.chunks(images), lambda: _text(report), lambda done: progress(done, frames))


class SaveLatentVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSaveLatentVideo",
            display_name="LTX A2V Decode and Save",
            category=OUTPUT,
            description="Does the work of Decode, Safety Checker and Save Video, for long or large clips: each part is "
            "written while the next one is decoded, so the whole clip is never in memory.",
            inputs=[
                VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
                io.Latent.Input("latent", lazy=True, tooltip="From the last sampler."),
                *_tiling_inputs(),
                *_file_inputs(),
                safety.checker_input(safety.FIRST, safety.OFF),
                safety.threshold_input(),
                safety.action_input(),
                *_optional_inputs(),
                io.Combo.Input(
                    "folder",
                    options=list(FOLDERS),
                    default=FOLDERS[0],
                    optional=True,
                    tooltip="output keeps the file. temp is for a preview: ComfyUI empties that folder when it starts.",
                ),
                _noise_input(),
                _retake_input(),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            **aliases("audio to video", "save mp4", "video with sound", "webm", "gif", "prores"),
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        # The checker is looked at below: ComfyUI would tell each mistake once for every argument that is named here.
        return files.verdict(check_prefix, filename_prefix)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        files.choice("action", inputs["action"], safety.ACTIONS)
        safety.chosen(inputs["checker"])
        return _wanted(cls, inputs, "latent", "report")

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        return safety.stamp()

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        latent: dict[str, Any],
        tile_size: int,
        tile_overlap: int,
        tile_frames: int,
        tile_frame_overlap: int,
        fps: float,
        filename_prefix: str,
        format: str,
        quality: str,
        write_mode: str,
        checker: str,
        threshold: float,
        action: str,
        audio: dict[str, Any] | None = None,
        report: str = "",
        folder: str = FOLDERS[0],
        noise: Any = None,
        retake: Retake | None = None,
    ) -> io.NodeOutput:
        files.choice("action", action, safety.ACTIONS)
        kind = io.FolderType(files.choice("folder", folder, FOLDERS))
        opened = safety.open_checker(checker)
        progress = Progress(cls.hidden.unique_id)
        clip = _decoder(video_vae, latent, tile_size, tile_overlap, tile_frames, tile_frame_overlap, noise, retake)
        target = Target(
            filename_prefix, clip.frames, clip.height, clip.width, fps, audio, format, quality, write_mode, kind
        )
        frames, beyond = clip.pictures(progress), _unheard(audio, retake, clip.frames, fps)

        def write(chunks: Iterable[Tensor], verdict: str, said: str = "") -> io.NodeOutput:
            def notes() -> str:
                return "\n".join((_text(report), *clip.notes, verdict, *beyond))

            return target.write(cls, chunks, notes, lambda done: progress.check(), said)

        if opened.checker is None:
            return write(frames, opened.reason, opened.reason)
        watch = Watch(opened.checker, clip.frames, threshold=threshold)
        try:
            return write(safety.stop_at_flag(watch, frames), safety.passed(watch))
        except safety.Flagged:
            forget(latent)  # what was flagged does not stay on the disk
            clip.told.clear()  # the black frames are not decoded
            verdict = safety.flagged(watch, action)
            black = torch.zeros(1, clip.height, clip.width, 3, dtype=torch.uint8)
            return write((black for _ in range(clip.frames)), verdict, verdict)


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VReport",
            display_name="LTX A2V Report",
            category=OUTPUT,
            description="Joins the reports of other nodes for Save Video, so that the settings and all warnings are "
            "stored in the file.",
            inputs=[
                io.String.Input(
                    f"report_{number}",
                    optional=True,
                    force_input=True,
                    tooltip="The report of any node, or another text. Empty texts are left out.",
                )
                for number in range(1, REPORTS + 1)
            ],
            outputs=[io.String.Output("joined", display_name="report", tooltip="All lines of the joined reports.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, **reports: Any) -> io.NodeOutput:
        named = (_text(reports.get(f"report_{number}")) for number in range(1, REPORTS + 1))
        lines = [line.strip() for text in named for line in text.splitlines() if line.strip()]
        return io.NodeOutput("\n".join(lines))


def _unheard(audio: dict[str, Any] | None, retake: Retake | None, frames: int, fps: float) -> list[str]:
    """As `unheard`, of a new track for a clip; the clip's own lies at its place in the video."""
    if audio is None or retake is None or placed_in_film(audio) is not None:
        return []
    return unheard(to_track(audio), frames, frame_rate(fps), "for more, give Retake more frames")


def _text(report: Any) -> str:
    """A report as text: other packs' outputs of any type fit its socket."""
    return "" if report is None else str(report)


NODES = (Decode, SaveVideo, SaveLatentVideo, Report)
