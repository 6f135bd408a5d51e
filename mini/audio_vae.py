"""The sound's two models: the audio VAE on log-mel spectrograms, and the vocoder that makes a wave of them.

Spectrograms are the pack's own (ltx/diffusion/sound.py). The vocoder learns on short pieces, first stage and bandwidth
extension together, from the distance of spectrograms at several resolutions; there is no adversary, so voices come out
muffled.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..ltx.diffusion.sound import log_mel, resample
from ..ltx.media.audio import Track
from . import clips, sizes, sound
from .training import Options, Stage

SECONDS, POOL = 1.36, 48  # of a piece; pieces kept, a few of them renewed at each step
AHEAD = 3 * sizes.RATE  # Hz of the vocoder's output


def piece(rng: np.random.Generator) -> Tensor:
    """Any sound of a clip, at the level of levelled tracks or a little off it: [samples] at 16 kHz."""
    frames = round(SECONDS * sizes.FRAME_RATE)
    scene = clips.random_scene(rng)
    track, _ = sound.accompany(rng, scene, frames, sizes.FRAME_RATE)
    wave = sound.heard(track, frames, sizes.FRAME_RATE)
    return (wave * float(10 ** (rng.uniform(-12, 2) / 20))).clamp(-1, 1)


class Pool:
    """Pieces that were made already: a synthesizer is slower than a step."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng((seed, 7))
        self.pieces: list[Tensor] = []

    def draw(self, count: int) -> Tensor:
        if len(self.pieces) >= POOL:
            self.pieces.pop(int(self.rng.integers(POOL)))
        self.pieces.append(piece(self.rng))
        chosen = self.rng.integers(0, len(self.pieces), count)
        return torch.stack([self.pieces[i] for i in chosen])


def mels(waves: Tensor) -> Tensor:
    """[B, samples] → the pack's log-mel [B, 2, T, 64]."""
    return torch.cat([log_mel(Track(wave[None], sizes.RATE)) for wave in waves])


def fresh() -> nn.Module:
    """The audio VAE, with only AUDIO_LIVE of its latent channels alive."""
    vae, live = sizes.module("audio_vae"), sizes.AUDIO_LIVE
    with torch.no_grad():
        half = vae.encoder.conv_out.conv.weight.shape[0] // 2
        vae.encoder.conv_out.conv.weight[live:half] = 0
        vae.encoder.conv_out.conv.bias[live:half] = 0
        vae.decoder.conv_in.conv.weight[:, live:] = 0
    return vae


def train_vae(folder: Path, options: Options, begin: nn.Module | None = None) -> Stage:
    """begin: weights to start from, where there is no state yet; so below."""
    torch.manual_seed(options.seed)
    stage = Stage("audio_vae", (begin or fresh()).to(options.device), folder, options, plain=("conv_in", "conv_out"))
    vae, pool = stage.module, Pool(options.seed + stage.step)
    for _ in stage.steps():
        mel = mels(pool.draw(4))
        length = 4 * ((mel.shape[2] - 1) // 4) + 1  # what the latents cover
        mel = mel[:, :, :length].to(options.device)
        moments = vae.encode(mel).latent_dist
        latent = moments.mode()
        noisy = latent + 0.05 * torch.randn_like(latent) * (latent != 0) if stage.share > 0.3 else latent
        made = vae.decode(noisy).sample[:, :, :length]
        off = (made - mel).abs().mean()
        pull = latent[:, : sizes.AUDIO_LIVE].square().mean()
        stage.update(off + 1e-3 * (pull - 1).clamp(min=0), size=float(pull.detach().sqrt()))
    return stage


@torch.no_grad()
def set_statistics(vae: nn.Module, count: int = 48, seed: int = 0) -> None:
    """The one mean and deviation of all living latents, over pieces."""
    pool = Pool(seed)
    mel = torch.cat([mels(pool.draw(1)) for _ in range(count)])
    latent = vae.encode(mel.to(vae.device)).latent_dist.mode().float()[:, : sizes.AUDIO_LIVE]
    vae.latents_mean.fill_(latent.mean())
    vae.latents_std.fill_(latent.std())


def slaney(bins: int, bands: int, rate: int) -> Tensor:
    """Triangular mel bands of unit area from 0 to half the rate: [bands, bins]."""
    top = 15 + 27 * math.log(rate / 2000) / math.log(6.4)  # linear below 1 kHz, 27 steps for every factor of 6.4 above
    mel = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    hertz = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    sides = torch.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre))
    return (sides.clamp(min=0) * 2 / (high - low)).float()


def fresh_vocoder() -> nn.Module:
    """The vocoder with the bases that the original file stores: a Hann-windowed DFT and its mel bands."""
    vocoder, n = sizes.module("vocoder"), sizes.FFT
    angle = 2 * math.pi / n * torch.outer(torch.arange(n // 2 + 1.0), torch.arange(float(n))).double()
    basis = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(n, dtype=torch.float64)
    for tensor in (vocoder.mel_stft.stft_fn.forward_basis, vocoder.mel_stft.stft_fn.inverse_basis):
        tensor.copy_(basis[:, None].float())
    vocoder.mel_stft.mel_basis.copy_(slaney(n // 2 + 1, sizes.MELS, sizes.RATE))
    return vocoder


def spectral_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """[B, n] against [B, n]: log magnitude and relative error of spectra of three lengths."""
    total = made.new_zeros(())
    for size in (256, 512, 1024):
        window = torch.hann_window(size, device=made.device)
        a, b = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-4)
            for x in (made, wanted)
        )
        total = total + (a.log() - b.log()).abs().mean() + (a - b).norm() / (a.detach().norm() + b.norm() + 1)
    return total


def train_vocoder(folder: Path, options: Options, begin: nn.Module | None = None) -> Stage:
    torch.manual_seed(options.seed)
    stage = Stage("vocoder", (begin or fresh_vocoder()).to(options.device), folder, options)
    vocoder, pool = stage.module, Pool(options.seed + stage.step)
    # Not learned through: the root of a spectrum has no gradient in silence.
    vocoder.mel_stft.forward = torch.no_grad()(vocoder.mel_stft.forward)
    for _ in stage.steps():
        wave = pool.draw(1)
        start = int(pool.rng.integers(0, wave.shape[1] - 6400))
        wave = wave[:, start : start + 6400]  # 0.4 s
        high = resample(wave, sizes.RATE, AHEAD).to(options.device)
        made = vocoder(mels(wave)[:, :, :41].to(options.device))
        n = min(made.shape[-1], high.shape[-1])
        loss = spectral_distance(made[0, :, :n], high[:, :n].expand(2, -1))
        stage.update(loss)
    return stage
