"""The sound: from a file, and how many frames of video it asks for."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io
from einops import rearrange

from ..ltx import audio as engine
from ..ltx.errors import InputError
from ..ltx.request import MAX_FRAMES, choose_frames
from ..ltx.video import frame_rate
from . import files
from .types import CATEGORY
from .widgets import widget

AUDIO = f"{CATEGORY}/Audio"


def to_track(audio: dict[str, Any]) -> engine.Track:
    """ComfyUI's AUDIO → the engine's. Errors: a batch of several."""
    waveform = audio["waveform"]
    if waveform.ndim != 3 or waveform.shape[0] != 1:
        raise InputError(f"audio: its shape is {tuple(waveform.shape)}; one track, [1, channels, samples], is needed.")
    track = rearrange(waveform, "1 c n -> c n").to("cpu", torch.float32)
    return engine.Track(track, audio["sample_rate"], tuple(audio.get("speakers", ())))


def from_track(track: engine.Track) -> dict[str, Any]:
    """The engine's track → ComfyUI's AUDIO. `speakers` is our own addition, which other nodes ignore or drop."""
    waveform = rearrange(track.waveform, "c n -> 1 c n")
    return {"waveform": waveform, "sample_rate": track.rate, "speakers": track.speakers}


class LoadAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VLoadAudio",
            display_name="LTX A2V Load Audio",
            category=AUDIO,
            description="Reads the audio of any sound or video file, at its own rate and with all its channels.",
            inputs=[
                io.Combo.Input(
                    "audio",
                    options=files.uploads("audio", "video"),
                    upload=io.UploadType.audio,
                    tooltip="A file of ComfyUI's input folder; upload one with the button. Any format that FFmpeg "
                    "opens, also a video.",
                ),
                io.Float.Input(
                    "start_time",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.01,
                    optional=True,
                    tooltip="Seconds to leave out at the beginning.",
                ),
                io.Float.Input(
                    "duration",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.01,
                    optional=True,
                    tooltip="Seconds to read; 0 reads to the end.",
                ),
                # The player; the frontend wants it last, and under this name.
                io.Custom("AUDIO_UI").Input("audioUI", optional=True, tooltip="Plays the chosen file."),
            ],
            outputs=[io.Audio.Output("track", display_name="audio", tooltip="The sound, untouched.")],
        )

    @classmethod
    def validate_inputs(cls, audio: str | None = None) -> bool | str:
        return files.verdict(files.upload, audio)

    @classmethod
    def fingerprint_inputs(cls, audio: str, **_: object) -> str:
        return files.stamp(files.upload(audio))

    @classmethod
    def execute(
        cls, audio: str, start_time: float = 0.0, duration: float = 0.0, audioUI: object = None
    ) -> io.NodeOutput:
        return io.NodeOutput(from_track(engine.load_track(files.upload(audio), start_time, duration or None)))


class FrameCount(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VFrameCount",
            display_name="LTX A2V Frame Count",
            category=AUDIO,
            description=f"How many frames the video has: as many as the audio lasts, or a number of yours. Rounded up "
            f"to one more than a multiple of 8, as the model needs, and at most {MAX_FRAMES} from audio.",
            inputs=[
                io.Audio.Input("audio", tooltip="The sound that the video is made for."),
                widget("fps", "frame_rate", step=0.001),
                widget("match_audio_length"),
                widget("num_frames", step=8),
            ],
            outputs=[
                io.Int.Output("frames", display_name="frames", tooltip="Frames of the video."),
                io.Float.Output("fps", display_name="fps", tooltip="Frames a second, as given."),
                io.String.Output("report", display_name="report", tooltip="What was rounded or cut, and why."),
            ],
        )

    @classmethod
    def execute(
        cls, audio: dict[str, Any], frame_rate: float, match_audio_length: bool, num_frames: int
    ) -> io.NodeOutput:
        frames, report = count(to_track(audio), frame_rate, match_audio_length, num_frames)
        logging.info("LTX A2V: %s", report)
        return io.NodeOutput(frames, frame_rate, report, ui={"text": [report]})


def count(track: engine.Track, fps: float, match: bool, asked: int) -> tuple[int, str]:
    """Frames of the video, and a sentence on how they came about."""
    frames, notes = choose_frames(track, frame_rate(fps), match, asked)
    seconds = float(frames / frame_rate(fps))
    return frames, "; ".join([f"{frames} frames, {seconds:.2f} s", *notes])


NODES = (LoadAudio, FrameCount)
