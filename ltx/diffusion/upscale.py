"""Upscales between the two stages: latents of half the size → latents of the full size, in the VAE's own space.

A clip in one window is upscaled as a whole, as in the official pipeline. A longer one is upscaled in pieces, so that
the memory does not grow with its length. The upscaler normalises over all frames that it is given, so a piece can only
resemble the whole; each piece is as long as the longest clip that the upscaler is used for elsewhere. On a film of five
minutes of the miniature, pieces are 3 % of the deviation away from the whole. Windows upscaled alone are 11 % away,
and 31 % at their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..latents import denormalize_video, normalize_video
from ..trace import Trace, under
from ..windows import LONGEST, WindowSize

PIECE = WindowSize(LONGEST).length  # latents
EDGE = 8  # latents at a cut that are not used, because the upscaler sees nothing behind the cut
FADE = 8  # latents in which one piece passes into the next


def upscale(upsampler: nn.Module, vae: nn.Module, latent: Tensor, trace: Trace | None = None) -> Tensor:
    """Latent [1, 128, F, H, W] in model space → float32 [1, 128, F, 2H, 2W] in model space."""
    raw = denormalize_video(vae, latent)
    with torch.inference_mode():
        large = upsampler(raw.to(upsampler.device, upsampler.dtype)).float().to(latent.device)
    result = normalize_video(vae, large)
    if trace is not None:
        for name, tensor in (("in", latent), ("unnorm_in", raw), ("unnorm_out", large), ("out", result)):
            trace(f"up/{name}", tensor)
    return result


def upscale_long(
    upsampler: nn.Module,
    vae: nn.Module,
    latent: Tensor,
    cuts: Sequence[int] = (),
    trace: Trace | None = None,
    on_piece: Callable[[int, int], None] = lambda done, total: None,
    only: Container[int] | None = None,
) -> Tensor:
    """As `upscale`, [1, 128, F, H, W] → float32 [1, 128, F, 2H, 2W], in pieces of at most PIECE latents, which are
    blended where they overlap. cuts: latents behind a hard cut, at which a piece begins that shares nothing with the
    one before. on_piece: is called with (latents done, all latents) after each piece. only: the first latents of the
    stretches between cuts to be upscaled, by default all; the others become 0."""
    _, channels, frames, height, width = latent.shape
    if not cuts and frames <= PIECE and only is None:
        return upscale(upsampler, vae, latent, trace)
    result, number = torch.zeros(1, channels, frames, 2 * height, 2 * width), 0
    for first, last in pairwise((0, *cuts, frames)):
        if only is not None and first not in only:
            continue
        for piece, weight in zip(*cut_pieces(last - first), strict=True):
            place = slice(first + piece.start, first + piece.stop)
            large = upscale(upsampler, vae, latent[:, :, place], under(f"piece{number}", trace))
            result[:, :, place] += large.cpu() * weight.view(-1, 1, 1)
            number += 1
            on_piece(place.stop, frames)
    return result


def cut_pieces(frames: int) -> tuple[list[slice], list[Tensor]]:
    """The pieces of a clip of so many latents, and the weights of each piece's latents; those of all pieces add up to
    1. All pieces have the same length, so the last one may share more with the one before."""
    if frames <= PIECE:
        return [slice(0, frames)], [torch.ones(frames)]
    starts = [*range(0, frames - PIECE, PIECE - 2 * EDGE - FADE), frames - PIECE]
    pieces = [slice(start, start + PIECE) for start in starts]
    rising = ((torch.arange(PIECE) - EDGE + 1) / (FADE + 1)).clamp(0, 1)
    weights = [torch.ones(PIECE) for _ in pieces]
    for weight in weights[1:]:
        weight *= rising
    for weight in weights[:-1]:
        weight *= rising.flip(0)
    total = torch.zeros(frames)
    for piece, weight in zip(pieces, weights, strict=True):
        total[piece] += weight
    return pieces, [weight / total[piece] for piece, weight in zip(pieces, weights, strict=True)]
