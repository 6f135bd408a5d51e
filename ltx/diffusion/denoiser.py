"""The transformer as a predictor of x0: it runs the passes that guidance needs, combines their predictions, and blends
the result by the masks."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .block import adopt
from .compiled import is_compiled, telling
from .conditioning import Conditions, Stream
from .guidance import Guidance, needed
from .leading import Leading
from .modulation import Levels, Modulations, Rotary, modulation, rotary
from .passes import (
    Alone,
    KeptTexts,
    Led,
    Pass,
    Reuse,
    beside_passes,
    run_as_batch,
    static_texts,
    text_limit,
    velocities,
)
from .samplers import UNWATCHED, Hooks
from .steering import Steering
from .tokens import Tokens


class GuidedDenoiser:
    """(x, sigma, step) → x0 of both streams. An object holds the state of one stage.

    It computes on the device of the streams' tensors. A frozen stream is not guided, and its text context is the
    positive one in every pass: with frozen audio the negative prompt acts on the video alone. room: free bytes beside
    the weights, which decide whether the passes of a step run as one batch. texts: as for `sample`. noise: [1, N, C],
    the stage's own, for kept tokens that are shown as noisy (`Stream.shown`). Raises InputError as `Steering.check`.
    """

    def __init__(
        self,
        model: nn.Module,
        video: Stream,
        audio: Stream,
        conditions: Conditions,
        steering: Steering,
        hooks: Hooks = UNWATCHED,
        room: float = 0.0,
        texts: float | None = None,
        noise: Tensor | None = None,
    ) -> None:
        self.model, self.video, self.audio, self.steering, self.hooks = model, video, audio, steering, hooks
        self.noise = torch.zeros_like(video.latent) if noise is None else noise
        self.device, self.dtype = video.latent.device, model.proj_in.weight.dtype
        self.frozen, self.still = audio.frozen, video.frozen
        layers = len(model.transformer_blocks)
        referred = audio.referred > 0
        steering.check(self.frozen, conditions.negative is not None, layers, self.still, referred)
        adopt(model)
        self.guidances = steering.acting(self.frozen, self.still, referred)
        self.passes = self._passes(conditions, layers)
        self.positions = rotary(model, video.positions, audio.positions, self.device)
        if video.hearing is not None:
            self.positions = replace(self.positions, hearing=video.hearing.to(self.device, self.dtype))
        self.views = () if video.sight is None else video.sight.views(self.device, self.dtype)
        level = video.mask if video.level is None else video.level
        self.masks, self.heard = Tokens(level[..., 0], audio.mask[..., 0]), audio.mask.max()
        self.levels = Levels.of(self.masks.video), Levels.of(self.masks.audio)
        tokens = self.masks.video.shape[1] + self.masks.audio.shape[1]
        step = model, tokens, len(self.passes) - ("alone" in self.passes), room
        self.batched = run_as_batch(*step)
        if texts is None:
            # On a CPU, `room` is about its caches.
            texts = min(text_limit(model), math.inf if self.device.type == "cpu" else beside_passes(*step))
        self.texts = KeptTexts(texts) if static_texts(model) else None
        self.alone = self._alone() if "alone" in self.passes else None
        sigmas, acceleration = steering.sigmas, steering.acceleration
        self.unguided = acceleration.guided_above(sigmas)
        self.reuse = Reuse(acceleration.reuse, float(sigmas[-2])) if acceleration.reuse else None

    def __call__(self, x: Tokens, sigma: Tensor, step: int) -> Tokens:
        guided, reused = float(sigma) > self.unguided, self.reuse is not None and float(sigma) > self.reuse.last
        sigma = torch.full((), float(sigma), device=self.device)  # a copy would wait for the device
        video_sigma, audio_sigma = torch.zeros_like(sigma) if self.still else sigma, sigma * self.heard

        def modulated(audio: Levels) -> Modulations:
            levels = self.levels[0] * sigma, audio * sigma
            return modulation(self.model, *levels, video_sigma[None], audio_sigma[None], self.dtype)

        alone = None
        if guided and self.alone is not None:
            length, positions, levels = self.alone
            alone = Alone(length, positions, modulated(levels))
        x = replace(x, video=self.video.shown(x.video, self.noise, sigma))
        shown = x.map(lambda own: own.to(self.dtype))
        if self.audio.voices is not None:
            shown = replace(shown, audio=torch.cat((shown.audio, self.audio.voices.to(self.dtype))))
        running = self.passes if guided else {"cond": self.passes["cond"]}
        told = self.hooks.on_compile is not None and is_compiled(self.model.transformer_blocks[0])
        with telling(self.hooks.on_compile) if told else nullcontext():
            results = velocities(
                self.model,
                shown,
                list(running.values()),
                self.positions,
                modulated(self.levels[1]),
                audio_read=not self.frozen,
                batched=self.batched,
                reuse=self.reuse if reused else None,
                marked=self.video.marked,
                texts=self.texts,
                views=self.views,
                alone=alone,
                on_block=self.hooks.on_block,
            )
        times = self.masks * sigma
        predictions = {
            name: Tokens(
                x.video - video.float() * times.video[..., None],
                x.audio if audio is None else x.audio - self._heard(audio).float() * times.audio[..., None],
            )
            for name, (video, audio) in zip(running, results, strict=True)
        }
        self._trace(step, predictions, times, Tokens(video_sigma, audio_sigma))
        x0 = self._guide(predictions) if guided else predictions["cond"]
        return self.blend(x0)

    def blend(self, x: Tokens) -> Tokens:
        """Mixes `x` with the clean tokens of both streams, by their masks."""
        return Tokens(self.video.blend(x.video), self.audio.blend(x.audio))

    def _passes(self, conditions: Conditions, layers: int) -> dict[str, Pass]:
        def placed(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, self.dtype)

        runs_uncond, runs_perturbed, runs_isolated, runs_alone = needed(*self.guidances)
        video_text, audio_text = placed(conditions.positive.video), placed(conditions.positive.audio)
        nag, led, video_negative, audio_negative = self.steering.nag, None, None, None
        if runs_uncond or nag is not None:
            video_negative, audio_negative = placed(conditions.negative.video), placed(conditions.negative.audio)
        if nag is not None:  # a frozen stream is not led, as it is not guided
            leading = Leading.of(nag, self.device, self.dtype)
            led = Led(leading, None if self.still else video_negative, None if self.frozen else audio_negative)
        passes = {"cond": Pass(video_text, audio_text, led=led)}
        if runs_uncond:
            passes["uncond"] = self._uncond(passes["cond"], video_negative, audio_negative)
        if runs_perturbed:
            blocks = (_stg_blocks(guidance, layers) for guidance in self.guidances)
            passes["perturbed"] = Pass(video_text, audio_text, *blocks, led=led)
        if runs_isolated:
            passes["isolated"] = Pass(video_text, audio_text, isolated=True, led=led)
        if runs_alone:
            passes["alone"] = Pass(video_text, audio_text, led=led, alone=True)
        return passes

    def _alone(self) -> tuple[int, Rotary, Levels]:
        """The sound without its reference: the number of its tokens, their positions and those of the picture, and
        their noise levels."""
        length = self.audio.latent.shape[1] - self.audio.referred
        own = rotary(self.model, self.video.positions[:, :, :1], self.audio.positions[:, :, :length], self.device)
        positions = replace(self.positions, audio=own.audio, cross_audio=own.cross_audio)
        return length, positions, Levels.of(self.masks.audio[:, :length])

    def _heard(self, velocity: Tensor) -> Tensor:
        """The velocity of the audio [1, T, C] with that of the reference's tokens, which are kept, if it lacks them."""
        return pad(velocity, (0, 0, 0, self.audio.latent.shape[1] - velocity.shape[1]))

    def _uncond(self, cond: Pass, video: Tensor, audio: Tensor) -> Pass:
        """The pass with these negative contexts. A stream that is not guided has the text of the other passes, and is
        led as there."""
        led = cond.led
        if self.still:
            video = cond.video_context
        elif led is not None:
            led = led._replace(video=None)
        if not self.guidances[1].runs_uncond:
            audio = cond.audio_context
        elif led is not None:
            led = led._replace(audio=None)
        return Pass(video, audio, led=led)

    def _guide(self, predictions: dict[str, Tokens]) -> Tokens:
        of_video, of_audio = self.guidances
        return Tokens(
            of_video.combine(**{name: x0.video for name, x0 in predictions.items()}),
            of_audio.combine(**{name: x0.audio for name, x0 in predictions.items()}),
        )

    def _trace(self, step: int, predictions: dict[str, Tokens], times: Tokens, sigmas: Tokens) -> None:
        if self.hooks.trace is None:
            return
        for number, x0 in enumerate(predictions.values()):
            for label, value in (
                ("video_x0", x0.video),
                ("audio_x0", x0.audio),
                ("video_timesteps", times.video[..., None]),
                ("audio_timesteps", times.audio[..., None]),
                ("video_sigma", sigmas.video[None]),
                ("audio_sigma", sigmas.audio[None]),
            ):
                self.hooks.trace(f"step{step}/call{number}/{label}", value)


def _stg_blocks(guidance: Guidance, layers: int) -> tuple[int, ...]:
    return guidance.blocks(layers) if guidance.runs_perturbed else ()
