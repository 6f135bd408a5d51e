"""Encodes the prompts and the sound of a job before sampling. Each model is loaded when it is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from .diffusion.conditioning import AudioCondition, TextContext
from .diffusion.sound import beside, encode_audio, encode_mel, encode_reference, log_mel
from .diffusion.speakers import Speaker
from .given import Note
from .job import Compute, Job
from .media import preprocess
from .media.audio import conditioning_track, part_from, reference_part, soundtrack
from .media.room_noise import with_room_noise
from .memory.forecast import EXPANDER, GEMMA, Forecast
from .memory.offload import Offload, offload_gemma
from .prompt.contexts import ContextCache, fingerprint
from .prompt.expand import Expansion, expand
from .prompt.expander import load_expander
from .prompt.gemma import Gemma, load_gemma
from .prompt.text import encode_texts
from .timeline import prompts_of, told_of
from .trace import Trace, under
from .weights.lora import Merger

OnProgress = Callable[[str, int, int], None]
"""A function that is called with (name of the phase, steps done, all steps)."""


@dataclass(frozen=True)
class Prompts:
    """The prompt as it is used, its context, the context of the negative prompt, and notes for the report.

    sections: the prompt of each section as it is used, with its context, on the CPU; empty without a timeline.
    """

    prompt: str
    positive: TextContext
    negative: TextContext
    notes: tuple[str, ...] = field(default=())
    sections: tuple[tuple[str, TextContext], ...] = field(default=())


def encode_prompts(
    job: Job, compute: Compute, trace: Trace | None, say: OnProgress, forecast: Forecast | None = None
) -> Prompts:
    """Encodes the prompts of a request, after expanding the positive one if the request asks for it.

    The texts take Gemma's layers together (prompt/text.py), and `say` is called after each, where it may end the job.
    Gemma and the connectors are freed afterwards. Contexts in the job's folder are not computed again, and Gemma is not
    loaded if all of them are there. An expander is freed before Gemma is loaded. forecast: says where the layers of
    both wait; None to have them whole on the device.
    """
    sections = job.plan.sections
    asked = prompts_of(sections, job.request.prompt)
    with _TextEncoder(job, compute, forecast) as encoder:
        prompts, notes = list(asked), []
        if job.request.enable_prompt_expansion:
            written = encoder.expand(prompts, lambda done, all_, _: say("expand prompt", done, all_))
            prompts = [expansion.prompt for expansion in written]
            notes += told_of(asked.values(), [expansion.reason for expansion in written])
        texts = [*prompts, job.request.negative_prompt]
        device = "cpu" if sections else compute.device  # there may be many
        say("encode text", 0, len(texts))
        made = encoder.encode(texts, trace, lambda done: say("encode text", done, len(texts)))
        contexts = [context.to(device) for context in made]
        for name, context in zip((*asked.values(), "negative prompt"), contexts, strict=True):
            notes += context.told(name)
    used = dict(zip(asked, zip(prompts, contexts[:-1], strict=True), strict=True))
    of_sections = tuple(used[section.prompt] for section in sections)
    return Prompts(prompts[0], contexts[0], contexts[-1], tuple(notes), of_sections)


class _TextEncoder:
    """Gemma and the connectors of a job, with its folder of contexts. They are loaded when they are first needed."""

    def __init__(self, job: Job, compute: Compute, forecast: Forecast | None) -> None:
        self.job, self.compute, self.forecast = job, compute, forecast
        self.waiting: list[Offload] = []
        self.cache = ContextCache(job.files.contexts) if job.files.contexts is not None else None
        dtype = f"{compute.dtype} fp8" if compute.fp8 else compute.dtype
        self.fingerprint = functools.partial(fingerprint, device=compute.device, dtype=dtype)

    def __enter__(self) -> _TextEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.waiting:
            each.release()

    @functools.cached_property
    def gemma(self) -> Gemma:
        return self._loaded(load_gemma, self.job.files.text_encoder, GEMMA)

    def _loaded(self, load: Callable[..., Gemma], path: Path, name: str) -> Gemma:
        compute = self.compute
        placement = None if self.forecast is None else self.forecast.offloaded(name)
        fp8 = {"fp8": compute.device} if compute.fp8 else {}
        loaded = load(path, compute.dtype, compute.device if placement is None else "cpu", **fp8)
        if placement is not None:
            self.waiting.append(offload_gemma(loaded.model, compute.device, placement))
        return loaded

    @functools.cached_property
    def connectors(self) -> nn.Module:
        checkpoint, device = self.job.checkpoint, self.compute.device
        connectors = checkpoint.connectors(self.compute.dtype, device)
        Merger(connectors, checkpoint.connectors_weight, device, optional=True).set(self.job.connector_loras)
        return connectors

    @functools.cached_property
    def writer(self) -> Gemma:
        return self._loaded(load_expander, self.job.files.expander, EXPANDER)

    def expand(self, prompts: Sequence[str], on_token: Callable[[int, int, str], None]) -> list[Expansion]:
        """The prompts written out. An expander is loaded once for all, and freed afterwards."""
        try:
            return [self._expanded(prompt, on_token) for prompt in prompts]
        finally:
            if self.__dict__.pop("writer", None) is not None:
                for each in self.waiting:
                    each.release()
                self.waiting.clear()

    def _expanded(self, prompt: str, on_token: Callable[[int, int, str], None]) -> Expansion:
        request, files = self.job.request, self.job.files
        image = next((image.pixels for image in self.job.images if not image.frame), None)

        def write() -> Expansion:
            if files.expander is None:
                return expand(self.gemma, prompt, seed=request.seed, image=image, on_token=on_token)
            return expand(self.writer, prompt, seed=0, image=image, greedy=True, on_token=on_token)

        if self.cache is None:
            return write()
        seed, identity = request.seed, self.fingerprint(files.text_encoder)
        if files.expander is not None:
            seed, identity = 0, f"{self.fingerprint(files.expander)} greedy"
        return self.cache.expansion(prompt, seed, image, identity, write)

    def encode(self, texts: Sequence[str], trace: Trace | None, say: Callable[[int], None]) -> Iterator[TextContext]:
        """The contexts of texts, in order; those in the job's folder are on the CPU. say: is called after each layer
        with the share of the work that is done, as a number of texts."""
        identity = "" if self.cache is None else self._identity()
        kept = [None if self.cache is None else self.cache.context(text, identity) for text in texts]
        traces = [under(f"prompt/{number}", trace) for number in range(len(texts))]
        missing = [number for number, context in enumerate(kept) if context is None]
        before = len(texts) - len(missing)
        say(before)

        def told(done: int, total: int) -> None:
            say(before + done * len(missing) // total)

        asked, watched = ([each[number] for number in missing] for each in (texts, traces))
        made = encode_texts(self.gemma, self.connectors, asked, watched, told) if missing else iter(())
        for text, context, own in zip(texts, kept, traces, strict=True):
            if context is None:
                context = next(made)
                if self.cache is not None:
                    self.cache.keep(text, identity, context)
            elif own is not None:
                own("video_enc", context.video)
                own("audio_enc", context.audio)
            yield context

    def _identity(self) -> str:
        """Of all files that a context is computed with, and of how."""
        files, loras = self.job.files, self.job.connector_loras
        used = [files.text_encoder, files.checkpoint, *([files.connectors] if files.connectors else [])]
        used += [lora.path for lora, _ in loras]
        return self.fingerprint(*used) + (f" {[strength for _, strength in loras]}" if loras else "")


def encode_sound(
    job: Job, compute: Compute, trace: Trace | None, note: Note | None = None
) -> tuple[AudioCondition, ...]:
    """Encodes the track, levelled if the request asks for it and with the job's noise, as one clip for each window. The
    job's own track, which the file gets, does not change. note: of the speakers' masks, as for `Clip.pictures`."""
    clip, track, noise = job.plan, job.heard, job.files.room_noise
    areas = [replace(area, note=note) for area, _ in job.speakers]
    voices = [None if voice is None else part_from(voice, clip.lead, clip.fps) for _, voice in job.speakers]
    referred = None if job.example is None else job.example.track
    if job.request.preprocess_audio:
        track, referred, *voices = (
            None if each is None else preprocess.preprocess(soundtrack(each, clip.frames, clip.fps))
            for each in (track, referred, *voices)
        )
    if noise is not None:
        track, *voices = (None if each is None else with_room_noise(each, noise) for each in (track, *voices))
    vae = job.checkpoint.audio_encoder(compute.dtype, compute.device)
    found = []
    for number, window in enumerate(clip.windows):
        model_track = conditioning_track(part_from(track, window.first_frame, clip.fps), window.frames, clip.fps)
        mel = log_mel(model_track)
        whole = encode_mel(vae, mel)
        if trace is not None:
            inside = under(f"audio/window{number}" if number else "audio", trace)
            inside("waveform", model_track.waveform[None])
            inside("mel", mel)
            inside("latent", whole)  # before it is cut, as in the golden files
        latent = beside(whole, window.frames, clip.fps)
        mask = None if job.source is None else job.source.sound_mask(window, clip.fps)
        parts = (None if voice is None else part_from(voice, window.first_frame, clip.fps) for voice in voices)
        spoken = [None if own is None else encode_audio(vae, own, window.frames, clip.fps) for own in parts]
        first = clip.lead + window.first_frame
        speakers = tuple(Speaker.of(area, first, clip.fps, own) for area, own in zip(areas, spoken, strict=True))
        settings = job.request.audio_strength, mask, speakers, clip.lead
        part = None if referred is None else reference_part(referred, window.first_frame, window.frames, clip.fps)
        reference = None if part is None else encode_reference(vae, part)
        if trace is not None and reference is not None:
            trace(f"reference/window{number}/audio_latent" if number else "reference/audio_latent", reference)
        found.append(AudioCondition(latent, window.frames, clip.fps, *settings, reference))
        if trace is not None and not number:
            trace("source/audio_latent", latent)
    return tuple(found)
