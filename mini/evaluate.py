"""What the miniature can do, in figures: clips made by the pack's own headless run, read back from their pixels.

Scenes are combinations of words that training never saw, voices are ones it never heard, and there is the pack's sample
of speech. Every figure stands beside the bound that it should keep; one that is not kept says so.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..ltx.job import Compute, Files
from ..ltx.media.audio import Track, load_track
from ..ltx.pipeline import run
from ..ltx.request import parse
from . import clips, dataset, readers, sizes, sound

SIDE, FRAMES = 128, 49
SPEECH = Path(__file__).resolve().parent.parent / "assets" / "speech.opus"
BASE = {
    "match_audio_length": False,
    "num_frames": FRAMES,
    "video_size": {"width": SIDE, "height": SIDE},
    "enable_prompt_expansion": False,  # the small text encoder cannot write
    "enable_safety_checker": False,
}


@dataclass(frozen=True)
class Case:
    """One held-out clip: what is to be seen and heard, and what the generator itself would show."""

    scene: clips.Scene
    track: Track
    motion: np.ndarray
    video: np.ndarray


@dataclass
class Evaluation:
    """Runs requests on one exported set, each at most once, and keeps the lines of the table."""

    weights: Path
    seed: int = 0
    say: Callable[[str], None] = lambda text: sys.stderr.write(text + "\n") and None
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="mini-evaluate-")))
    made: int = 0

    def video(
        self,
        prompt: str,
        track: Track,
        first: np.ndarray | None = None,
        last: np.ndarray | None = None,
        camera: str | None = None,
        speakers: Sequence[np.ndarray] = (),
        voices: Sequence[Track] = (),
        **request: Any,
    ) -> np.ndarray:
        """The clip that the pack makes: float [T, H, W, 3] in 0..1. speakers: masks [H, W] of who hears the sound, and
        the voice of each."""
        self.made += 1
        name = self.folder / f"{self.made:04d}"
        kept: dict[str, Tensor] = {}
        images = []
        for what, picture in (("first", first), ("last", last)):
            path = name.with_name(f"{name.name}-{what}.png")
            if picture is not None:
                Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).save(path)
            images.append(path if picture is not None else None)
        masks = [name.with_name(f"{name.name}-speaker{number}.png") for number in range(len(speakers))]
        for path, mask in zip(masks, speakers, strict=True):
            Image.fromarray((mask * 255.0).astype(np.uint8)).save(path)
        heard = [save_wave(path.with_suffix(".wav"), voice) for path, voice in zip(masks, voices, strict=False)]
        lora = {None: None, "dolly_in": sizes.FILES["dolly_in"], "static": sizes.FILES["static"]}[camera]
        files = Files(
            checkpoint=self.weights / sizes.FILES["checkpoint"],
            text_encoder=self.weights / sizes.FILES["gemma"],
            upscaler=self.weights / sizes.FILES["upscaler"],
            distill_lora=self.weights / sizes.FILES["distilled"],
            camera_lora=self.weights / lora if lora else None,
            audio=save_wave(name.with_suffix(".wav"), track),
            output=name.with_suffix(".mp4"),
            image=images[0],
            end_image=images[1],
            speakers=tuple(masks),
            voices=tuple(heard),
        )
        asked = parse({**BASE, "prompt": prompt, "seed": self.seed, "camera_lora": camera or "none", **request})
        run(files, asked, Compute(torch.float32), trace=lambda key, tensor: kept.__setitem__(key, tensor))
        for leftover in self.folder.glob(f"{name.name}*"):
            leftover.unlink()
        frames = next(v for k, v in kept.items() if k.startswith("final/") and v.ndim == 4 and v.shape[-1] == 3)
        return frames.numpy().astype(np.float32) / 255

    def line(self, what: str, value: str, bound: str = "", met: bool | None = None) -> None:
        self.lines.append((what, value, bound, "" if met is None else "yes" if met else "not yet"))
        self.say(f"{what}: {value}")


def save_wave(path: Path, track: Track) -> Path:
    """16-bit PCM."""
    samples = (track.waveform.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(track.rate)
        file.writeframes(samples.tobytes())
    return path


def cases(count: int, seed: int, frames: int = FRAMES) -> list[Case]:
    """Held-out faces with held-out voices; every fourth speaks the pack's sample instead."""
    rng = np.random.default_rng((seed, 99))
    fps, found = sizes.FRAME_RATE, []
    while len(found) < count:
        scene = clips.random_scene(rng, "face")
        if not dataset.held_out(scene):
            continue
        if len(found) % 4 == 3:
            whole = load_track(SPEECH)
            start = int(rng.integers(0, max(1, whole.waveform.shape[1] - int(frames / fps * whole.rate))))
            track = Track(whole.waveform[:, start:].contiguous(), whole.rate)
        else:
            track = sound.speech(rng, frames / fps, held_out=True)
        motion = sound.envelope(sound.heard(track, frames, fps), frames, fps)
        found.append(Case(scene, track, motion, clips.render(scene, motion, fps, (SIDE, SIDE))))
    return found


def agreement(evaluation: Evaluation, found: list[Case], **request: Any) -> tuple[float, float, list[int]]:
    """Mean correlation of mouths with their own sound at the best lag, with another clip's, and the lags."""
    motions = [readers.mouth(evaluation.video(c.scene.prompt, c.track, **request)) for c in found]
    own = [readers.lagged(m, c.motion) for m, c in zip(motions, found, strict=True)]
    others = [readers.correlation(m, found[(i + 1) % len(found)].motion) for i, m in enumerate(motions)]
    return float(np.mean([c for c, _ in own])), float(np.mean(others)), [lag for _, lag in own]


def adherence(evaluation: Evaluation, count: int, seed: int, **request: Any) -> float:
    """Share of held-out prompts whose colour and shape are both seen."""
    rng, right, done = np.random.default_rng((seed, 98)), 0, 0
    track = load_track(SPEECH)
    while done < count:
        scene = clips.random_scene(rng, "face")
        if not dataset.held_out(scene):
            continue
        done += 1
        seen = readers.words(evaluation.video(scene.prompt, track, num_frames=25, **request))
        right += seen["colour"] == scene.colour and seen["shape"] == scene.shape
    return right / count


def table(weights: Path, count: int, prompts: int, seed: int = 0, everything: bool = False) -> str:
    """Measures all of it and returns the page."""
    evaluation = Evaluation(weights, seed)
    found = cases(count, seed)
    own, other, lags = agreement(evaluation, found)
    late = max(map(abs, lags))
    evaluation.line("audio–motion correlation, best lag", f"{own:.4f}", "≥ 0.8", own >= 0.8)
    evaluation.line("its lags, frames", f"{min(lags)} … {max(lags)}", "at most 1", late <= 1)
    evaluation.line("the same with another clip's sound", f"{other:.3f}", "≤ 0.2", other <= 0.2)
    weak = agreement(evaluation, found, video_modality_scale=1)[0]
    evaluation.line("correlation, modality guidance 1", f"{weak:.4f}", "below that at 3", weak < own)

    starts, ends, nothing = [], [], []
    for case in found[: max(2, count // 2)]:
        video = evaluation.video(case.scene.prompt, case.track, case.video[0], case.video[-1])
        starts.append(readers.psnr(video[0], case.video[0]))
        ends.append(readers.psnr(video[-1], case.video[-1]))
        elsewhere = found[0].scene.prompt
        unlike = evaluation.video(elsewhere, case.track, case.video[0], image_strength=0)
        nothing.append(readers.psnr(unlike[0], case.video[0]))
    first, last = float(np.mean(starts)), float(np.mean(ends))
    evaluation.line("first image, PSNR of frame 0", f"{first:.1f} dB", "≥ 28 dB", first >= 28)
    evaluation.line("end image, PSNR of the last frame", f"{last:.1f} dB", "≥ 24 dB", last >= 24)
    # Strength 0 leaves the image out of the request altogether; the figure is for comparison.
    evaluation.line("image at strength 0, PSNR of frame 0", f"{float(np.mean(nothing)):.1f} dB", "no resemblance")

    right = adherence(evaluation, prompts, seed)
    evaluation.line("prompts followed, CFG 3", f"{right:.0%}", "≥ 90 %", right >= 0.9)
    loose = adherence(evaluation, prompts, seed, video_cfg_scale=1)
    evaluation.line("prompts followed, CFG 1", f"{loose:.0%}", "below that at CFG 3", loose < right)

    scores: dict[bool, list[float]] = {True: [], False: []}
    for case in found[: max(2, count // 2)]:
        for two in scores:
            video = evaluation.video(case.scene.prompt, case.track, case.video[0], use_multiscale=two)
            scores[two].append(readers.psnr(video, case.video[: len(video)]))
    two, one = (float(np.mean(scores[k])) for k in (True, False))
    evaluation.line(
        "PSNR against the generator, two passes", f"{two:.1f} dB", f"above one pass, {one:.1f} dB", two > one
    )

    if everything:
        for scheduler in ("beta", "ltx2", "linear_quadratic"):
            for restart in (True, False):
                got = agreement(evaluation, found, scheduler=scheduler, use_restart_sampling=restart)[0]
                evaluation.line(f"correlation, {scheduler}, restart {'on' if restart else 'off'}", f"{got:.3f}")
        for level in ("regular", "high", "full"):
            got = agreement(evaluation, found, acceleration=level)[0]
            evaluation.line(f"correlation, acceleration {level}", f"{got:.3f}", "within 0.05", abs(got - own) <= 0.05)
    return page(evaluation.lines, count, prompts, seed)


def page(lines: list[tuple[str, str, str, str]], count: int, prompts: int, seed: int) -> str:
    """The table as Markdown."""
    day = datetime.date.today().isoformat()
    rows = [
        "| figure | value | bound | kept |",
        "|---|---|---|---|",
        *("| " + " | ".join(line) + " |" for line in lines),
    ]
    head = (
        f"Miniature, {day}, seed {seed}: {count} held-out clips of {FRAMES} frames at {SIDE}×{SIDE}, {prompts} prompts."
    )
    return head + "\n\n" + "\n".join(rows) + "\n"
