"""The node for who speaks: a region of the picture that hears the sound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.diffusion.speakers import Speaker, check_region
from .conditioning import CONDITIONING
from .film import FilmSound, from_beginning
from .taking.mask import to_area
from .types import AudioIO
from .widgets import aliases


class WhoSpeaks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSpeaker",
            display_name="LTX A2V Speaker (experimental)",
            category=CONDITIONING,
            description="Experimental: only a region of the picture hears the sound, so that one person speaks and "
            "others do not. For two people, use two of these nodes in a row, each with the voice of one person.",
            is_experimental=True,
            **aliases("who speaks", "two people", "dialogue", "face mask", "multitalk", "lip sync"),
            inputs=[
                AudioIO.Input("audio", tooltip="From Audio Conditioning, or from the Speaker before."),
                io.Mask.Input(
                    "mask",
                    tooltip="White hears the sound. One mask for all frames, or one for each frame. Outside the masks "
                    "of all speakers, nothing hears.",
                ),
                io.Audio.Input(
                    "voice",
                    optional=True,
                    tooltip="This person alone, as long as the whole audio: the region then hears while this voice is "
                    "loud beside the others. Without it the region always hears.",
                ),
            ],
            outputs=[
                AudioIO.Output("heard", display_name="audio", tooltip="For the first sampler, or the next Speaker.")
            ],
        )

    @classmethod
    def execute(
        cls, audio: AudioCondition | FilmSound, mask: Tensor, voice: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        film, area = FilmSound.of(audio), to_area(mask)
        check_region("mask", area)
        track = None if voice is None else from_beginning(voice)
        sounds = []
        for place, sound in zip(film.cut.windows, film.sounds, strict=True):
            speaker = Speaker.of(area, sound.lead + place.first_frame, place.frames, film.fps, track)
            sounds.append(replace(sound, speakers=(*sound.speakers, speaker)))
        return io.NodeOutput(replace(film, sounds=tuple(sounds)) if isinstance(audio, FilmSound) else sounds[0])


NODES = (WhoSpeaks,)
