"""Nodes for films that are longer than a clip: the windows in which they are sampled, and their sections."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.kept import DAYS, DEFAULTS
from ..ltx.errors import InputError
from ..ltx.media.images import compress, load_image
from ..ltx.media.pauses import levels
from ..ltx.media.rates import frame_rate
from ..ltx.timeline import Section, borders, prompts_of, read_timeline, told_of
from ..ltx.windows import LONGEST, MOST_OVERLAP, SHORTEST, WindowSize, cut_windows
from . import files, memory, text
from .audio import frames_input
from .film import FOLDER, Cut, Timeline, check_clip, heard
from .progress import Progress, reported
from .taking.picture import to_picture
from .types import CATEGORY, TextEncoderIO, TextIO, TimelineIO, WindowsIO
from .widgets import aliases, widget

FILMS = f"{CATEGORY}/Films"
EXAMPLE = "0:00 a woman sings in a small studio\n0:18.5 she dances in the rain\n0:41 [cut] a close view of her face"


class CutWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        usual, share = WindowSize(), {"min": 0.0, "max": 1.0, "step": 0.05, "optional": True}
        return io.Schema(
            node_id="LTXA2VWindow",
            display_name="LTX A2V Window",
            category=FILMS,
            description="Makes a film of any length: the samplers work through it in overlapping windows, and the "
            "whole is decoded as one clip. Connect it to Audio Conditioning and switch whole_track of Frame Count on. "
            f"Finished windows are kept for {DEFAULTS[DAYS]:g} days in the folder {FOLDER} of ComfyUI's output folder, "
            "so that an interrupted run goes on from them.",
            **aliases("film", "long video", "song", "talk", "music video"),
            inputs=[
                frames_input(),
                widget("fps", step=0.001, tooltip="From Frame Count.", linked_whole=True),
                io.Int.Input(
                    "window_frames",
                    default=usual.frames,
                    min=SHORTEST,
                    max=LONGEST,
                    step=8,
                    tooltip="Frames of a window, one more than a multiple of 8. A longer window keeps motion coherent "
                    "for longer and takes more memory; the film's length takes none.",
                ),
                io.Int.Input(
                    "overlap",
                    default=usual.overlap,
                    min=1,
                    max=MOST_OVERLAP,
                    tooltip="Latents of eight frames that a window continues from the one before it. Raise it to 3 or "
                    "4 if the motion changes where windows meet; the film then needs more windows.",
                ),
                TimelineIO.Input(
                    "timeline", optional=True, tooltip="From Timeline: each section begins with a window of its own."
                ),
                io.Boolean.Input(
                    "pauses",
                    default=usual.pauses,
                    optional=True,
                    tooltip="Windows end where the sound is quiet, up to a quarter earlier, because a mouth rests "
                    "there. It needs audio. Off makes all windows equally long.",
                ),
                io.Float.Input(
                    "anchor",
                    default=usual.anchor,
                    **share,
                    tooltip="How strongly later windows are held to the first frame of their section, if that begins "
                    "the film or has [cut]. It keeps colours and faces; 0 lets them drift.",
                ),
                io.Float.Input(
                    "drift",
                    default=usual.drift,
                    **share,
                    tooltip="The share by which a window is pulled to the first window of its section, wherever both "
                    "show the same. It keeps colours from drifting; 0 leaves it out.",
                ),
                io.String.Input(
                    "window_seeds",
                    default="",
                    optional=True,
                    tooltip="Seeds for single windows, to make them anew: 5: 123 gives window 5 the seed 123. A comma "
                    "stands between two of them.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="From Preprocess Audio. Windows end at its pauses."),
            ],
            outputs=[
                WindowsIO.Output("windows", display_name="windows", tooltip="For Audio Conditioning."),
                io.String.Output("report", display_name="report", tooltip="Says how many windows there are."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        frames: int,
        fps: float,
        window_frames: int,
        overlap: int,
        timeline: Timeline | None = None,
        audio: dict[str, Any] | None = None,
        window_seeds: str = "",
        **more: Any,
    ) -> io.NodeOutput:
        asked = {"frames": window_frames, "overlap": overlap, "seeds": _seeds(window_seeds), **more}
        rate, size = frame_rate(fps), WindowSize.parse(asked)
        sections: tuple[Section, ...] = ()
        if timeline is not None:
            check_clip("timeline", timeline, frames, rate)
            sections = timeline.sections
        loud: tuple[int, ...] = ()
        if size.pauses and audio is not None and frames > size.frames:
            loud = levels(heard(audio), frames, rate)
        windows = cut_windows(frames, size, borders(sections, frames, rate), loud)
        size.check_seeds(len(windows))
        cut = Cut(frames, rate, windows, timeline if sections else None, size)
        deaf = ["connect audio, so that windows end at its pauses"] if size.pauses and audio is None else []
        return reported(cls, cut, text="; ".join([_told(cut, overlap), *deaf]))


def _seeds(text: str) -> dict[str, int]:
    """ "5: 123, 8: 9" → {"5": 123, "8": 9}. Raises InputError for any other text."""
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        number, _, seed = map(str.strip, part.partition(":"))
        if not seed.isdecimal() or len(seed) > 20:
            raise InputError(f"window_seeds: {part[:40]!r} is no window with its seed; write it like 5: 123.")
        found[number] = int(seed)
    return found


def _told(cut: Cut, overlap: int) -> str:
    if len(cut.windows) == 1:
        return f"the film of {cut.frames} frames fits into one window"
    again = sum(max(0, window.given - 1) for window in cut.windows)
    new = sum(window.length - window.given for window in cut.windows)
    return (
        f"{len(cut.windows)} windows of up to {cut.longest.frames} frames that share {overlap} latents; "
        f"the overlap takes {again / (again + new):.0%} of the work"
    )


class SectionTimeline(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VTimeline",
            display_name="LTX A2V Timeline",
            category=FILMS,
            description="Gives a film sections, each with its own prompt, which is encoded once. A line that begins "
            "with a time begins a section: minutes:seconds, then what is seen. [cut] after the time begins a new "
            "shot, [seed 7] gives the section noise of its own, [image face.png] begins it with a picture of "
            "ComfyUI's input folder. A name and a colon before the text let a later section repeat it. Without a "
            "timeline, the prompt is that of the whole film.",
            **aliases("film", "storyboard", "scenes", "sections", "verse", "chorus"),
            inputs=[
                TextEncoderIO.Input("text_encoder", tooltip="From Load Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the film shows before the first section, or all the time if there is no section.",
                ),
                io.String.Input(
                    "timeline",
                    multiline=True,
                    default="",
                    placeholder=EXAMPLE,
                    tooltip="One section a line, for instance: 0:18.5 [cut] chorus: she dances in the rain. Lines "
                    "without a time continue the line above; lines that begin with # are comments.",
                ),
                frames_input(),
                widget("fps", step=0.001, tooltip="From Frame Count.", linked_whole=True),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Draws the words if enabled is on. Link it with the noise's seed.",
                ),
                widget(
                    "enable_prompt_expansion",
                    "enabled",
                    tooltip="Gemma first writes a fuller prompt for each section. Off uses your words unchanged.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The first image, which Gemma looks at. A batch gives its first."
                ),
                text.expander_input(),
            ],
            outputs=[
                TimelineIO.Output("sections", display_name="timeline", tooltip="For Window and Section Images."),
                TextIO.Output(
                    "context",
                    display_name="text",
                    tooltip="The first section's prompt, encoded, for both samplers.",
                ),
                io.String.Output(
                    "first_prompt", display_name="prompt", tooltip="The first section's prompt, as it is used."
                ),
                io.String.Output("report", display_name="report", tooltip="Lists the sections with their prompts."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, timeline: str | None = None, prompt: str | None = None, expander: str | None = None
    ) -> bool | str:
        if timeline is None:
            return text.check_choice(expander)
        read = files.verdict(lambda given: _read(given, "-" if prompt is None else prompt), timeline)
        return read if read is not True else text.check_choice(expander)

    @classmethod
    def fingerprint_inputs(cls, timeline: str | None = None, expander: str | None = text.OWN, **_: object) -> str:
        names = [section.image for section in read_timeline(timeline or "", "-") if section.image]
        return " ".join([text.stamp_of(expander), *(files.stamp(files.upload(name)) for name in names)])

    @classmethod
    def execute(
        cls,
        text_encoder: memory.TextEncoder,
        prompt: str,
        timeline: str,
        frames: int,
        fps: float,
        seed: int,
        enabled: bool,
        image: Tensor | None = None,
        expander: str = text.OWN,
    ) -> io.NodeOutput:
        text.check_encoder(text_encoder)
        rate, sections = frame_rate(fps), _read(timeline, prompt)
        borders(sections, frames, rate)  # for its errors
        progress = Progress(cls.hidden.unique_id)
        asked = prompts_of(sections, prompt)
        first, used, notes = next(iter(asked)), dict(zip(asked, asked, strict=True)), []
        if enabled:
            picture = _seen(sections) if image is None else compress(to_picture(image))
            writer = text.Writing(cls.hidden.unique_id, text_encoder, seed, picture, expander)
            written = [writer.write(each) for each in asked]
            used = {each: expansion.prompt for each, expansion in zip(asked, written, strict=True)}
            notes = told_of(asked.values(), [expansion.reason for expansion in written])
        progress(0, len(asked))
        contexts = dict(zip(asked, text.encoded(text_encoder, [used[each] for each in asked], progress), strict=True))
        progress(len(asked), len(asked))
        notes += [sentence for each, name in asked.items() for sentence in contexts[each].told(name)]
        made = Timeline(sections, tuple(contexts[section.prompt] for section in sections), frames, rate)
        lines = [f"{section}: {text.line(used[section.prompt])}" for section in sections]
        lines = lines or [f"prompt: {text.line(used[prompt])}"]
        said = "\n".join([*lines, *dict.fromkeys(notes)])
        return reported(cls, made, contexts[first], used[first], text=said)


def _read(timeline: str, prompt: str) -> tuple[Section, ...]:
    """The sections of a text, whose images are in ComfyUI's input folder. Raises InputError, also if one is missing."""
    for name, value in (("prompt", prompt), ("timeline", timeline)):
        text.check_text(name, value)
    sections = read_timeline(timeline, prompt)
    for section in sections:
        if section.image:
            files.upload(section.image)
    return sections


def _seen(sections: tuple[Section, ...]) -> Tensor | None:
    """The image that the first section begins with, as a prompt is written for it."""
    name = sections[0].image if sections else ""
    return compress(load_image(files.upload(name))) if name else None


NODES = (CutWindows, SectionTimeline)
