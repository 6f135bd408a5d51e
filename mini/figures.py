"""What the miniature can do: a table of figures, each a mean over clips with its interval, and beside its bound.

Every part measures one thing. A setting is compared with the default on the same clips and noise, so that what the
clips have in common does not count. Intervals are those of Student's t distribution over clips, at 95 %.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ltx.diffusion.sound import decode_audio, encode_audio, log_mel
from ..ltx.media.audio import Track
from ..ltx.media.preprocess import preprocess
from ..ltx.media.video import write_video
from ..ltx.weights.checkpoint import load_checkpoint
from . import dataset, evaluate, readers, sizes, sound
from .evaluate import FRAMES, SIDE, Case, Evaluation, Figures

SURE = 0.95  # that a mean over all clips lies in its interval
RATE = Fraction(sizes.FRAME_RATE).limit_denominator(1001)
LONG, WINDOWS = 145, {"frames": 49, "overlap": 2}  # frames of a film, and its windows
QUIET = math.log(1e-3)  # of a mel band's magnitude against the loudest one: what is less is silence
METRICS = {"correlation": ".3f", "visemes": ".0%", "sharpness": ".2f", "flicker": ".2f", "drift": ".1f", "psnr": ".2f"}
UNITS = {"flicker": "flicker, of 255", "drift": "drift, of 255", "psnr": "PSNR, dB"}
MORE = 3  # times as many clips for the terms of guidance, whose differences are small
ONE: dict[str, Any] = {"use_multiscale": False}
"""What guides the first stage is judged without the second. That one starts at sigma 0.909 with 16 tokens a frame of
128x128, which leaves so little of the first that CFG 1 and 3 end alike; the published model has thousands of tokens."""
SETTINGS: dict[str, dict[str, Any]] = {
    "scheduler ltx2": {"scheduler": "ltx2"},
    "scheduler linear_quadratic": {"scheduler": "linear_quadratic"},
    "8 steps": {"num_inference_steps": 8},
    "30 steps": {"num_inference_steps": 30},
    "restart off": {"use_restart_sampling": False},
    "restart share 0.1": {"restart": (0.1,)},
    "restart share 0.5": {"restart": (0.5,)},
    "1 restart": {"restart": (0.2, 1)},
    "2 restarts": {"restart": (0.2, 2)},
    "gamma 2": {"gradient_estimation_gamma": 2.0},
    "gamma 2, restart off": {"gradient_estimation_gamma": 2.0, "use_restart_sampling": False},
    "CFG 1": {"video_cfg_scale": 1},
    "CFG 2": {"video_cfg_scale": 2},
    "CFG 6": {"video_cfg_scale": 6},
    "STG 0": {"video_stg_scale": 0},
    "STG 2": {"video_stg_scale": 2},
    "rescale 0": {"video_rescaling_scale": 0},
    "rescale 0.5": {"video_rescaling_scale": 0.5},
    "rescale 1": {"video_rescaling_scale": 1},
    "modality 1": {"video_modality_scale": 1},
    "modality 2": {"video_modality_scale": 2},
    "modality 6": {"video_modality_scale": 6},
    "acceleration regular": {"acceleration": "regular"},
    "acceleration high": {"acceleration": "high"},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "one stage": ONE,
    "acceleration full (distilled recipe)": {"acceleration": "full"},
    "distilled LoRA off in the first stage": {"distill_lora_first_pass_scale": 0},
    "distilled LoRA 0.5 in the first stage": {"distill_lora_first_pass_scale": 0.5},
    "distilled LoRA off in the second stage": {"distill_lora_second_pass_scale": 0},
    "distilled LoRA 1 in the second stage": {"distill_lora_second_pass_scale": 1},
}
IMAGES = {f"image strength {strength}": {"image_strength": strength} for strength in (0.8, 0.5, 0.2)}
RENEWED = {"audio_strength": 0.5}  # so that what guides the sound acts
SOUNDS = {
    "audio strength 0.8": {"audio_strength": 0.8},
    "audio strength 0.2": {"audio_strength": 0.2},
    "audio CFG 1": {"audio_cfg_scale": 1},
    "audio STG 1": {"audio_stg_scale": 1},
    "audio rescale 0": {"audio_rescaling_scale": 0},
    "audio modality 1": {"audio_modality_scale": 1},
}


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its interval, mean ± half, by Student's t distribution, and how many clips there were."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """NaNs do not count. One value has no interval: half is infinite."""
        from scipy.special import stdtrit  # imported here, because importing scipy is slow

        known = np.array([value for value in values if not math.isnan(value)])
        if len(known) < 2:
            return cls(float(known.mean()) if len(known) else math.nan, math.inf, len(known))
        half = float(stdtrit(len(known) - 1, (1 + SURE) / 2)) * float(known.std(ddof=1)) / math.sqrt(len(known))
        return cls(float(known.mean()), half, len(known))

    @property
    def differs(self) -> bool:
        """Whether 0 is outside the interval."""
        return abs(self.mean) > self.half + 1e-9

    def text(self, form: str = ".3f", sign: bool = False) -> str:
        """As `0.853 ± 0.012`; a form with % makes percent of shares."""
        plus, scale = "+" if sign else "", 100 if form.endswith("%") else 1
        digits = form.rstrip("%") + ("f" if scale == 100 else "")
        if math.isnan(self.mean):
            return "–"
        half = "" if math.isinf(self.half) else f" ± {self.half * scale:{digits}}"
        return f"{self.mean * scale:{plus}{digits}}{half}{' %' if scale == 100 else ''}"


def means(found: Sequence[Figures]) -> dict[str, Estimate]:
    """Of each figure over the clips."""
    return {name: Estimate.of(each[name] for each in found) for name in found[0]}


def differences(found: Sequence[Figures], base: Sequence[Figures]) -> dict[str, Estimate]:
    """The same of their paired differences from others of the same clips."""
    return {name: Estimate.of(a[name] - b[name] for a, b in zip(found, base, strict=True)) for name in found[0]}


@dataclass
class Section:
    """One part of the page: a table, with a sentence above it."""

    title: str
    said: str
    columns: tuple[str, ...] = ("figure", "value", "clips", "bound", "kept")
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def line(self, what: str, value: Estimate, form: str = ".3f", bound: str = "", met: bool | None = None) -> None:
        """A row of a figure and its bound. met: whether it keeps it."""
        kept = "" if met is None else "yes" if met else "not yet"
        self.rows.append((what, value.text(form), str(value.count), bound, kept))

    def page(self) -> str:
        rows = [self.columns, ("---",) * len(self.columns), *self.rows]
        return f"## {self.title}\n\n{self.said}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


@dataclass
class Bench:
    """What the parts share. count, prompts: how many clips, and how many for the words alone; extras: whether faces are
    of the whole world, as `evaluate.cases` takes it."""

    evaluation: Evaluation
    count: int
    prompts: int
    extras: bool = True

    @cached_property
    def faces(self) -> list[Case]:
        return evaluate.cases(self.count, self.evaluation.seed, extras=self.extras)

    def faced(self, images: str = "", **request: Any) -> list[Figures]:
        """The figures of all faces under a request."""
        others = self.faces[1:] + self.faces[:1]
        return [
            self.evaluation.figures(case, partial(evaluate.seen, case, other), images, **request)
            for case, other in zip(self.faces, others, strict=True)
        ]


@torch.no_grad()
def of_vae(bench: Bench) -> Section:
    """Drawn clips after the VAE alone, which no clip can be better than."""
    part = Section("The VAE alone", "Drawn clips, encoded and decoded: no sampling can do better.")
    vae = load_checkpoint(bench.evaluation.weights / sizes.FILES["checkpoint"]).video_vae(torch.float32)
    found, words = [], []
    for case, other in zip(bench.faces, bench.faces[1:] + bench.faces[:1], strict=True):
        latent = vae.encode(dataset.to_pixels(case.video)).latent_dist.mode()
        video = vae.decode(latent).sample[0].permute(1, 2, 3, 0).add(1).div(2).clamp(0, 1).numpy()
        found.append(evaluate.seen(case, other, video))
        words.append(evaluate.named(case.scene, video))
    for name, value in {name: means(found)[name] for name in METRICS}.items():
        part.line(UNITS.get(name, name), value, METRICS[name])
    part.line("words that are read", means(words)["all words"], ".0%")
    return part


def of_picture(bench: Bench) -> Section:
    what = "Held-out scenes and voices; every fourth clip has the pack's sample of speech."
    return _pictured(bench, Section("Picture", what))


def of_plain(bench: Bench) -> Section:
    what = "Large bare heads before plain grounds."
    return _pictured(replace(bench, extras=False), Section("Plain faces", what))


def _pictured(bench: Bench, part: Section) -> Section:
    got = means(bench.faced())
    part.line("correlation of mouth and sound", got["correlation"], ".3f", "≥ 0.85", got["correlation"].mean >= 0.85)
    part.line("its best lag, frames", got["lag"], ".2f", "0 ± 1", abs(got["lag"].mean) <= 1)
    part.line("with another clip's sound", got["other"], ".3f", "≤ 0.2", got["other"].mean <= 0.2)
    part.line("visemes", got["visemes"], ".0%", "≥ 70 %", got["visemes"].mean >= 0.7)
    part.line("visemes of another clip's sound", got["shuffled"], ".0%", "≤ 30 %", got["shuffled"].mean <= 0.3)
    for name in ("sharpness", "flicker", "drift"):
        part.line(UNITS.get(name, name), got[name], METRICS[name])
    first, both, without = (
        means([bench.evaluation.figures(case, partial(evaluate.kept, case), images) for case in bench.faces])
        for images in ("first", "both", "")
    )
    part.line("first image, PSNR of frame 0, dB", first["first"], ".1f", "≥ 28", first["first"].mean >= 28)
    part.line("its colours to the end, of 255", first["colours"], ".1f", "≤ 6", first["colours"].mean <= 6)
    part.line("end image, PSNR of the last frame, dB", both["last"], ".1f", "≥ 24", both["last"].mean >= 24)
    part.line("without an image, PSNR of frame 0, dB", without["first"], ".1f", "no resemblance")
    return part


def of_words(bench: Bench) -> Section:
    part = Section(
        "Words",
        "How many of a prompt's words are seen, for each kind of word, one clip of 25 frames a prompt. No hat and no "
        "hair are to be seen, too, if the prompt names none. CFG is compared in one stage.",
        ("word", "defaults", "one stage, CFG 3", "CFG 1", "difference", "prompts", "bound", "kept"),
    )
    drawn = evaluate.cases(bench.prompts, bench.evaluation.seed + 1, 25, extras=True)
    usual, strict, loose = (
        [
            bench.evaluation.figures(case, partial(evaluate.named, case.scene), num_frames=25, **request)
            for case in drawn
        ]
        for request in ({}, ONE, {**ONE, "video_cfg_scale": 1})
    )
    for name, value in means(usual).items():
        more = differences(strict, loose)[name]
        shares = [each.text(".0%") for each in (value, means(strict)[name], means(loose)[name])]
        row = (name, *shares, more.text(".0%", sign=True), str(value.count))
        whole = name == "all words"
        part.rows.append((*row, "above 0" if whole else "", _said(more.differs and more.mean > 0) if whole else ""))
    return part


def of_guidance(bench: Bench) -> Section:
    part = Section(
        "Guidance",
        f"One stage with the default's guidance, and less each of its terms, on the same {MORE * bench.count} clips.",
        ("term", "figure", "with", "without", "difference", "bound", "kept"),
    )
    rows = (
        ("modality 3 or 1", {"video_modality_scale": 1}, ("correlation", "visemes"), "above 0"),
        ("CFG 3 or 1", {"video_cfg_scale": 1}, ("correlation", "visemes"), ""),
        ("STG 1 or 0", {"video_stg_scale": 0}, ("correlation", "visemes", "flicker"), ""),
        ("rescale 0.85 or 0", {"video_rescaling_scale": 0}, ("correlation", "drift", "sharpness"), ""),
    )
    bench = replace(bench, count=MORE * bench.count)
    base = bench.faced(**ONE)
    for what, request, names, bound in rows:
        without = bench.faced(**ONE, **request)
        more = differences(base, without)
        for name in names:
            form, met = METRICS[name], _said(more[name].differs and more[name].mean > 0) if bound else ""
            values = (means(base)[name].text(form), means(without)[name].text(form), more[name].text(form, sign=True))
            part.rows.append((what, UNITS.get(name, name), *values, bound, met))
    return part


def of_pairs(bench: Bench) -> Section:
    part = Section("Who speaks", "Two faces, of which the prompt says which one talks, or that both do.")
    drawn = evaluate.cases(bench.count, bench.evaluation.seed, kind="pair", extras=True)
    got = [bench.evaluation.figures(case, partial(evaluate.talking, case)) for case in drawn]
    words = means([bench.evaluation.figures(case, partial(evaluate.named, case.scene)) for case in drawn])
    right = means(got)["right one"]
    part.line("the right one talks", right, ".0%", "≥ 90 %", right.mean >= 0.9)
    part.line("correlation of the one that talks", means(got)["correlation"])
    part.line("the other's movement, in that one's", means(got)["the other's movement"], ".2f")
    part.line("words that are seen", words["all words"], ".0%")
    return part


def of_music(bench: Bench) -> Section:
    part = Section("Music", "Bars follow five bands, and a ball bounces on the beats.")
    for kind, what in (("bars", "correlation of bars and bands"), ("ball", "correlation of ball and beats")):
        drawn = evaluate.cases(max(2, bench.count // 2), bench.evaluation.seed, kind=kind, extras=True)
        got = [bench.evaluation.figures(case, partial(_followed, case)) for case in drawn]
        part.line(what, means(got)["correlation"])
    return part


def _followed(case: Case, video: np.ndarray) -> Figures:
    read = (readers.bars if case.scene.kind == "bars" else readers.ball)(video).reshape(len(video), -1)
    wanted = case.motion[: len(video)].reshape(len(video), -1)
    return {"correlation": float(np.mean([readers.correlation(a, b) for a, b in zip(read.T, wanted.T, strict=True)]))}


@torch.no_grad()
def of_sound(bench: Bench) -> Section:
    part = Section(
        "Sound",
        "Loudness is compared with the track's, or with what the drawn mouth does. Spectra are compared as the mean "
        "difference of 64 mel bands, in dB, at the same loudness.",
    )
    checkpoint = load_checkpoint(bench.evaluation.weights / sizes.FILES["checkpoint"])
    encoder, decoder = checkpoint.audio_encoder(torch.float32, "cpu"), checkpoint.audio_decoder(torch.float32, "cpu")
    vocoder = checkpoint.vocoder(torch.float32, "cpu")
    through, anew, held = [], [], []
    for case, other in zip(bench.faces, bench.faces[1:] + bench.faces[:1], strict=True):
        prompt, seed = case.scene.prompt, 1000 * bench.evaluation.seed + case.number
        latent = encode_audio(encoder, preprocess(case.track), FRAMES, RATE)
        through.append(_alike(decode_audio(decoder, vocoder, latent, FRAMES, RATE), case, other))
        source = bench.evaluation.folder / f"drawn-{case.number}.mp4"
        pixels = torch.from_numpy((case.video * 255 + 0.5).astype(np.uint8))
        write_video(source, [pixels], RATE, case.track, quality="maximum")
        anew.append(
            _alike(bench.evaluation.sound(prompt, None, source, edit={"renew": "sound"}, seed=seed), case, other)
        )
        source.unlink()
        held.append(_alike(bench.evaluation.sound(prompt, case.track, **RENEWED, seed=seed), case, other))
    kept = means(anew)["mouth"]
    part.line("made anew beside the drawn clip: loudness and mouth", kept, ".3f", "≥ 0.7", kept.mean >= 0.7)
    for what, found in (("made anew", anew), ("held at 0.5", held), ("through audio VAE and vocoder", through)):
        part.line(f"{what}: loudness and the track's", means(found)["loudness"])
        part.line(f"{what}: spectrum and the track's, dB", means(found)["spectrum"], ".1f")
    part.line("another clip's track: spectrum and the track's, dB", means(through)["elsewhere"], ".1f")
    return part


def _alike(made: Track, case: Case, other: Case) -> Figures:
    """How alike a sound that was made is to the case's: loudness as correlations, spectra in dB."""
    loudness, given = (
        sound.envelope(sound.heard(track, FRAMES, sizes.FRAME_RATE), FRAMES, sizes.FRAME_RATE)
        for track in (made, case.track)
    )
    return {
        "mouth": readers.correlation(loudness, case.motion),
        "loudness": readers.correlation(loudness, given),
        "spectrum": _apart(_mel(made), _mel(case.track)),
        "elsewhere": _apart(_mel(other.track), _mel(case.track)),
    }


def _mel(track: Track) -> torch.Tensor:
    """Log-mel of what the model hears: [T, 64]."""
    return log_mel(Track(sound.heard(track, FRAMES, sizes.FRAME_RATE)[None], sizes.RATE))[0].mean(0)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two log-mels are from each other, in dB, each at its own mean."""
    a, b = (each[: min(len(one), len(other))] for each in (one, other))
    a, b = ((each - each.max()).clamp(min=QUIET) for each in (a, b))
    return 20 / math.log(10) * float(((a - a.mean()) - (b - b.mean())).abs().mean())


def of_windows(bench: Bench) -> Section:
    part = Section("Windows", f"Films of {LONG} frames in windows of {WINDOWS['frames']}.")
    drawn = evaluate.cases(max(2, bench.count // 4), bench.evaluation.seed, LONG, extras=True)
    got = means(
        [bench.evaluation.figures(case, partial(_film, case), num_frames=LONG, windows=WINDOWS) for case in drawn]
    )
    part.line("correlation of mouth and sound", got["correlation"])
    part.line("the same in its last second", got["last"])
    part.line("drift of colours a second, of 255", got["drift"], ".2f")
    return part


def _film(case: Case, video: np.ndarray) -> Figures:
    """drift: how far the colours of the last second are from those of the first one, by the seconds between."""
    second, opening, colours = round(RATE), readers.mouth(video), readers.colours(video)
    ends = np.stack([colours[:second].mean(0), colours[-second:].mean(0)])
    return {
        "correlation": readers.correlation(opening, case.motion[: len(opening)]),
        "last": readers.correlation(opening[-second:], case.motion[: len(opening)][-second:]),
        "drift": float(readers.drift(ends)[1]) / ((len(video) - second) / second),
    }


def of_settings(bench: Bench) -> Section:
    part = Section(
        "Settings",
        "Each row changes one setting. Behind a mean stands its paired difference from the nearest row above that has "
        "none, with its interval; it is bold where that excludes 0, which one in twenty does by chance. PSNR is that "
        "against the drawn clip, of which a prompt does not say all.",
        ("setting", *(UNITS.get(name, name) for name in METRICS)),
    )
    groups: tuple[tuple[str, str, dict[str, Any], dict[str, dict[str, Any]]], ...] = (
        ("one stage", "", ONE, SETTINGS),
        ("defaults", "", {}, STAGES),
        ("defaults, with a first image", "first", {}, IMAGES),
        ("audio strength 0.5", "", RENEWED, SOUNDS),
    )
    for name, images, request, changed in groups:
        base = bench.faced(images, **request)
        part.rows.append((name, *(means(base)[each].text(form) for each, form in METRICS.items())))
        for setting, more in changed.items():
            part.rows.append((setting, *_compared(bench.faced(images, **{**request, **more}), base)))
    return part


def _compared(found: Sequence[Figures], base: Sequence[Figures]) -> list[str]:
    cells, now, more = [], means(found), differences(found, base)
    for name, form in METRICS.items():
        mean, change = Estimate(now[name].mean, math.inf, now[name].count), more[name]
        text = change.text(form, sign=True)
        cells.append(f"{mean.text(form)} ({f'**{text}**' if change.differs else text})")
    return cells


def _said(met: bool) -> str:
    return "yes" if met else "not yet"


PARTS: dict[str, Callable[[Bench], Section]] = {
    "vae": of_vae,
    "picture": of_picture,
    "plain": of_plain,
    "words": of_words,
    "guidance": of_guidance,
    "pairs": of_pairs,
    "music": of_music,
    "sound": of_sound,
    "windows": of_windows,
    "settings": of_settings,
}
LONGEST = "settings"  # the part that takes hours


def table(
    weights: Path,
    count: int,
    prompts: int,
    seed: int = 0,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Measures the named parts, or all of them, and returns the page. say: is told each clip's figures."""
    bench = Bench(Evaluation(weights, seed, say), count, prompts)
    day = datetime.date.today().isoformat()
    parts = [PARTS[name](bench) for name in PARTS if name in (only or PARTS)]
    runs = bench.evaluation.made
    head = (
        f"# Figures of the miniature\n\n{day}, seed {seed}: {count} held-out clips, {FRAMES} frames of {SIDE}×{SIDE}, "
        f"{prompts} prompts, {runs} runs of the pack. Behind ± is the {SURE:.0%} interval of the mean over clips, by "
        "Student's t distribution. docs/mini.md says what is seen and heard.\n"
    )
    return "\n".join([head, *(part.page() for part in parts)])
