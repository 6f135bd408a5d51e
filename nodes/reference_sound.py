"""The node for a sound that the model hears as an example, beside the one that drives the video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.diffusion.sound import encode_reference
from ..ltx.errors import InputError
from ..ltx.given import check_example
from ..ltx.media.audio import reference_part
from . import memory
from .conditioning import CONDITIONING
from .film import FilmSound
from .progress import Progress
from .taking.sound import UNCONNECTED, to_track
from .types import AudioIO, AudioVaeIO
from .widgets import aliases


class ReferenceSound(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VReferenceSound",
            display_name="LTX A2V Reference Sound (experimental)",
            category=CONDITIONING,
            description="For IC-LoRAs that were trained with sound, such as DubIt, and for voices such as ID-LoRA's: "
            "the model hears a sound as an example, beside the one that the video gets.",
            is_experimental=True,
            **aliases("ic-lora", "dubit", "lipdub", "dubbing", "id-lora", "voice", "reference audio"),
            inputs=[
                AudioIO.Input(
                    "audio", tooltip="From Audio Conditioning, or for the second sampler from the first one."
                ),
                io.Audio.Input(
                    "sound",
                    optional=True,
                    tooltip="The example: the clip's own sound, or some seconds of a voice. Without it the audio "
                    "itself is the example, as DubIt wants it in the second stage.",
                ),
                AudioVaeIO.Input(
                    "audio_vae",
                    optional=True,
                    tooltip="From Load Model. It encodes the sound; without a sound you need not connect it.",
                ),
            ],
            outputs=[AudioIO.Output("heard", display_name="audio", tooltip="For one sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        audio: AudioCondition | FilmSound,
        sound: dict[str, Any] | None = UNCONNECTED,
        audio_vae: memory.Handle | None = None,
    ) -> io.NodeOutput:
        film = FilmSound.of(audio)
        if sound is UNCONNECTED:
            sounds = [each.beside_itself for each in film.sounds]
        else:
            if audio_vae is None:
                raise InputError("audio_vae: it is not connected, and a sound needs it; connect the one of Load Model.")
            references = _encoded(film, sound, audio_vae, Progress(cls.hidden.unique_id))
            sounds = [replace(each, reference=own) for each, own in zip(film.sounds, references, strict=True)]
        return io.NodeOutput(replace(film, sounds=tuple(sounds)) if isinstance(audio, FilmSound) else sounds[0])


def _encoded(
    film: FilmSound, sound: dict[str, Any] | None, audio_vae: memory.Handle, progress: Progress
) -> Iterator[Tensor | None]:
    """What is heard beside each window; None beside one that is made elsewhere."""
    track, windows = to_track(sound), film.cut.windows
    check_example("sound", track)
    progress(0, len(windows))
    (vae,) = memory.use(audio_vae)
    for number, window in enumerate(windows):
        if film.cut.is_here(number):
            part = reference_part(track, window.first_frame, window.frames, film.fps)
            yield memory.to_graph(encode_reference(vae, part))
        else:
            yield None
        progress(number + 1, len(windows))


NODES = (ReferenceSound,)
