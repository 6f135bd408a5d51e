"""The node for who speaks: a region of the picture that hears the sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.diffusion.speakers import Speaker, check_region, check_voices
from ..ltx.errors import InputError
from ..ltx.media.audio import part_from
from . import memory
from .conditioning import CONDITIONING, encode_windows
from .film import FilmSound, from_beginning
from .progress import Progress
from .taking.mask import to_area
from .taking.sound import UNCONNECTED, to_track
from .types import AudioIO, AudioVaeIO
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
                    tooltip="This person alone, as long as the whole audio: the region hears this voice in place of "
                    "the audio, also while others speak. It needs the audio VAE.",
                ),
                AudioVaeIO.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="From Load Model. It encodes the voice; without a voice you need not connect it.",
                ),
            ],
            outputs=[
                AudioIO.Output("heard", display_name="audio", tooltip="For the first sampler, or the next Speaker.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        audio: AudioCondition | FilmSound,
        mask: Tensor,
        voice: dict[str, Any] | None = UNCONNECTED,
        audio_vae: memory.Handle | None = None,
    ) -> io.NodeOutput:
        film, area = FilmSound.of(audio), to_area(mask)
        check_region("mask", area)
        voices = _voices(film, voice, audio_vae, Progress(cls.hidden.unique_id))
        sounds = []
        for place, sound, own in zip(film.cut.windows, film.sounds, voices, strict=True):
            speaker = Speaker.of(area, sound.lead + place.first_frame, film.fps, own)
            sounds.append(replace(sound, speakers=(*sound.speakers, speaker)))
        return io.NodeOutput(replace(film, sounds=tuple(sounds)) if isinstance(audio, FilmSound) else sounds[0])


def _voices(
    film: FilmSound, voice: dict[str, Any] | None, audio_vae: memory.Handle | None, progress: Progress
) -> Sequence[Tensor | None]:
    """The voice beside each window, encoded as its sound is. Raises InputError if a voice cannot be heard."""
    if voice is UNCONNECTED:
        return [None] * len(film.sounds)
    if audio_vae is None:
        raise InputError("audio_vae: it is not connected, and a voice needs it; connect the one of Load Model.")
    check_voices(film.frozen)
    to_track(voice)  # for its errors, before it is placed in the film
    track = part_from(from_beginning(voice), film.sounds[0].lead, film.fps)
    return list(encode_windows(audio_vae, track, film.cut, progress))


NODES = (WhoSpeaks,)
