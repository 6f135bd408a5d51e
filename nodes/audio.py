"""Nodes for the sound: load it, count its frames, prepare it for the model, and decode it from latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.diffusion.sound import decode_audio
from ..ltx.errors import InputError
from ..ltx.media import audio as engine
from ..ltx.media import crossfade, preprocess, room_noise
from ..ltx.media.rates import frame_rate
from ..ltx.media.suffixes import FILM, SOUND
from ..ltx.plan import choose_frames
from ..ltx.request import MAX_FRAMES, PARAMETERS
from ..ltx.restoring import resounded
from . import files, memory
from .film import FilmSound, Retake, heard, is_partly_kept, prepared
from .progress import Progress, reported, shown
from .taking.sound import from_track, to_track
from .types import CATEGORY, AudioIO, AudioVaeIO, RetakeIO, VocoderIO
from .widgets import aliases, widget

AUDIO = f"{CATEGORY}/Audio"
MOST_FRAMES = 200_000  # more than the longest film has at 60 frames per second


def frames_input() -> io.Input:
    """The input for the number of frames, which comes from Frame Count."""
    default = PARAMETERS["num_frames"].default
    return io.Int.Input("frames", default=default, min=1, max=MOST_FRAMES, step=8, tooltip="From Frame Count.")


class LoadAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VLoadAudio",
            display_name="LTX A2V Load Audio",
            category=AUDIO,
            description="Reads the audio of any sound or video file, at its own rate and with all its channels: "
            "speech, voice, song or music, as mp3, wav, flac, m4a, opus, mp4 and the like.",
            **aliases("speech", "voice", "song", "music", "lip sync", "audio to video"),
            inputs=[
                io.Combo.Input(
                    "audio",
                    options=files.uploads("audio", SOUND | FILM),
                    upload=io.UploadType.audio,
                    tooltip="A file in ComfyUI's input folder; upload one with the button. It can have any format that "
                    "FFmpeg opens, and it can be a video.",
                ),
                io.Float.Input(
                    "start_time",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.01,
                    optional=True,
                    tooltip="Seconds to skip at the beginning. In a film they count from its first picture.",
                ),
                io.Float.Input(
                    "duration",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.01,
                    optional=True,
                    tooltip=f"Seconds to read; 0 reads to the end, at most {engine.LONGEST // 60} minutes.",
                ),
                # The player. The frontend needs it as the last input and under this name.
                io.Custom("AUDIO_UI").Input("audioUI", optional=True, tooltip="Plays the chosen file."),
            ],
            outputs=[io.Audio.Output("track", display_name="audio", tooltip="The sound, unchanged.")],
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
        track = engine.load_track(files.upload(audio), start_time, duration or None, engine.LONGEST, spare=True)
        return io.NodeOutput(from_track(track), ui=shown("\n".join(track.notes)) if track.notes else None)


class FrameCount(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VFrameCount",
            display_name="LTX A2V Frame Count",
            category=AUDIO,
            description=f"Sets how many frames the video has: as many as the audio lasts, or your own number. It is "
            f"rounded up to one more than a multiple of 8, as the model needs. The audio gives at most {MAX_FRAMES}; "
            "with whole_track it gives any number, for a film in windows.",
            **aliases("fps", "frame rate", "length", "duration"),
            inputs=[
                io.Audio.Input("audio", tooltip="The sound that the video is made for."),
                widget("fps", "frame_rate", step=0.001, display_name="fps", linked_whole=True),
                widget("match_audio_length"),
                widget("num_frames", step=8),
                io.Boolean.Input(
                    "whole_track",
                    default=False,
                    optional=True,
                    tooltip=f"On: the video may be longer than {MAX_FRAMES} frames, but shorter than "
                    f"{engine.LONGEST // 60} minutes. The model cannot make so much at once: connect Window, too.",
                ),
            ],
            outputs=[
                io.Int.Output("frames", display_name="frames", tooltip="Frames of the video."),
                io.Float.Output("fps", display_name="fps", tooltip="The same frames per second as the input."),
                io.String.Output("report", display_name="report", tooltip="Says what was rounded or cut, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        audio: dict[str, Any],
        frame_rate: float,
        match_audio_length: bool,
        num_frames: int,
        whole_track: bool = False,
    ) -> io.NodeOutput:
        frames, note = count(to_track(audio), frame_rate, match_audio_length, num_frames, whole_track)
        return reported(cls, frames, float(frame_rate), text=note)  # a workflow may have a text


def count(track: engine.Track, fps: float, match: bool, num_frames: int, windowed: bool = False) -> tuple[int, str]:
    """Returns the number of frames, and a sentence for the report that says what was changed. windowed: whether the
    sound may give more than MAX_FRAMES."""
    frames, notes = choose_frames(track, frame_rate(fps), match, num_frames, windowed=windowed)
    if frames > MAX_FRAMES and windowed:
        notes.append("so many are made in windows: connect Window to Audio Conditioning")
    seconds = float(frames / frame_rate(fps))
    return frames, "; ".join([f"{frames} frames, {seconds:.2f} s", *notes])


class PreprocessAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VPreprocessAudio",
            display_name="LTX A2V Preprocess Audio",
            category=AUDIO,
            description=f"Makes a copy of the sound for the model: it removes rumble, sets the loudness to "
            f"{preprocess.TARGET:g} LUFS and keeps peaks below {preprocess.CEILING:g} dBFS. Quiet voices then move the "
            "lips as loud ones do. The video keeps the loaded sound: connect Load Audio, not this node, to Save Video. "
            "The report warns of silence, hard cuts, clipping and other faults that make videos static or jumpy.",
            inputs=[
                io.Audio.Input("audio", tooltip="From Load Audio."),
                frames_input(),
                widget("fps", step=0.001, tooltip="From Frame Count.", linked_whole=True),
                widget(
                    "preprocess_audio",
                    "enabled",
                    tooltip="Off leaves the sound unchanged, for a track that is mastered already. The warnings stay.",
                ),
            ],
            outputs=[
                io.Audio.Output("heard", display_name="audio", tooltip="Only for Audio Conditioning."),
                io.String.Output("report", display_name="report", tooltip="Says what was done, and gives warnings."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, audio: dict[str, Any], frames: int, fps: float, enabled: bool) -> io.NodeOutput:
        track, rate, kept = heard(audio), frame_rate(fps), is_partly_kept(audio)
        warnings = preprocess.warnings(track, frames, rate, levelled=enabled and not kept)
        if not enabled or kept:
            why = ": a part of it is kept, and the new part shall be as loud" if kept and enabled else ""
            return reported(cls, audio, text=_told(cls.hidden, f"the audio was not preprocessed{why}", *warnings))
        source = engine.soundtrack(track, frames, rate)
        levelled = preprocess.preprocess(source)
        levels = " to ".join(_level(preprocess.loudness(each)) for each in (source, levelled))
        note = f"the audio for the model was brought from {levels}"
        return reported(cls, prepared(levelled, audio), text=_told(cls.hidden, note, *warnings))


def _told(hidden: Any, *lines: str) -> str:
    """The lines as a report. In a graph with several Preprocess Audio, each line begins with its node's title, because
    their reports are joined. hidden: the node's hidden inputs, None outside of a graph."""
    prompt, node_id = getattr(hidden, "prompt", None), str(getattr(hidden, "unique_id", None))
    nodes = prompt if isinstance(prompt, Mapping) else {}
    kind = nodes.get(node_id, {}).get("class_type")
    if sum(node.get("class_type") == kind for node in nodes.values()) < 2:
        return "\n".join(lines)
    meta = nodes[node_id].get("_meta")  # a program that queues a graph may leave it out
    title = meta.get("title") if isinstance(meta, Mapping) else None
    title = " ".join(str(title or f"node {node_id}").split())
    return "\n".join(f"{title}: {line}" for line in lines)


def _level(loudness: float) -> str:
    return f"{loudness:.1f} LUFS" if loudness > preprocess.GATE else "silence"


class RoomNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VRoomNoise",
            display_name="LTX A2V Room Noise",
            category=AUDIO,
            description="Puts quiet noise under the copy of the sound that the model hears. People report that speech "
            "without any background, such as a voice generator's, leaves the picture still, and that such noise helps. "
            "The video keeps the loaded sound.",
            **aliases("still picture", "static video", "tts", "lip sync", "background noise", "pink noise"),
            inputs=[
                io.Audio.Input("audio", tooltip="From Preprocess Audio."),
                io.Float.Input(
                    "noise_level",
                    default=room_noise.USUAL,
                    min=room_noise.QUIETEST,
                    max=room_noise.LOUDEST,
                    step=1.0,
                    tooltip=f"Power of the noise in dBFS. {room_noise.USUAL:g} is a quiet room; a higher number is "
                    "louder.",
                ),
            ],
            outputs=[io.Audio.Output("heard", display_name="audio", tooltip="Only for Audio Conditioning.")],
        )

    @classmethod
    def execute(cls, audio: dict[str, Any], noise_level: float) -> io.NodeOutput:
        room_noise.check_kept("audio", not is_partly_kept(audio))
        room_noise.check_level("noise_level", noise_level)  # from another node
        return io.NodeOutput(prepared(room_noise.with_room_noise(heard(audio), noise_level), audio))


class DecodeAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VDecodeAudio",
            display_name="LTX A2V Decode Audio",
            category=AUDIO,
            description="Gives the sound of the finished video. At audio strength 1 it is the loaded sound, unchanged; "
            "at a lower strength it is the sound that the model made of it, in stereo at 48 kHz.",
            inputs=[
                AudioIO.Input("before", tooltip="From Audio Conditioning. Its strength decides which sound it is."),
                AudioIO.Input("after", tooltip="The last sampler's next audio."),
                AudioVaeIO.Input("audio_vae", tooltip="From Load Model."),
                VocoderIO.Input("vocoder", tooltip="From Load Model."),
                io.Audio.Input("audio", tooltip="From Load Audio: the sound that is returned at strength 1."),
                RetakeIO.Input(
                    "retake",
                    optional=True,
                    tooltip="From Retake, if sound is made anew: the rest of the audio is kept.",
                ),
            ],
            outputs=[
                io.Audio.Output("track", display_name="audio", tooltip="For Save Video."),
                io.String.Output("report", display_name="report", tooltip="Says which of the two sounds it is."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        before: AudioCondition | FilmSound,
        after: AudioCondition | FilmSound,
        audio_vae: memory.Handle,
        vocoder: memory.Handle,
        audio: dict[str, Any],
        retake: Retake | None = None,
    ) -> io.NodeOutput:
        before, after = FilmSound.of(before), FilmSound.of(after)
        if (before.frames, before.fps) != (after.frames, after.fps):
            raise InputError(
                f"after: it has {after.frames} frames at {float(after.fps):g} fps, but before has {before.frames} at "
                f"{float(before.fps):g}; connect the audio of one run."
            )
        if before.frozen:
            to_track(audio)  # for its errors
            return reported(cls, audio, text="the audio is the loaded one, unchanged")
        progress = Progress(cls.hidden.unique_id)
        progress(0, len(after.sounds))
        vae, voice = memory.use(audio_vae, vocoder)
        parts = []
        for sound in after.sounds:
            parts.append(decode_audio(vae, voice, sound.latent, sound.frames, sound.fps))
            progress(len(parts), len(after.sounds))
        track = crossfade.join(parts, [window.starts_at(after.fps) for window in after.cut.windows])
        note = f"the audio was made anew at strength {before.strength:g}, {track.rate} Hz"
        if retake is not None and retake.source.sounds:
            retake.check("after", after.frames, after.fps)
            track = resounded(track, to_track(audio), retake.source, retake.plan(0, 0))
            note = f"the audio was made anew where the retake says so, {track.rate} Hz"
        return reported(cls, from_track(track), text=note)


NODES = (LoadAudio, FrameCount, PreprocessAudio, RoomNoise, DecodeAudio)
