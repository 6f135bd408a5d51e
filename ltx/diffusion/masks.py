"""Masks over time: which latents of picture and sound an edit makes anew, and how what was made passes into the rest.

A token is made anew if its span reaches into the time, as in the official retake pipeline: its end is after the start,
and its start before the end. The comparison is float32, because float64 decides otherwise where an edge of the time is
the edge of a token.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ..latents import audio_positions, video_positions

Span = tuple[float, float]
"""Start and end in seconds."""
LEAST = 0.05  # of a softened token: one that is made anew at all moves a little


def video_spans(latents: int, fps: Fraction) -> Tensor:
    """Start and end of each latent frame in seconds, float32 [F, 2]."""
    return video_positions((latents, 1, 1), fps)[0, 0]


def audio_spans(length: int) -> Tensor:
    """Start and end of each audio latent in seconds, float32 [T, 2]."""
    return audio_positions(length)[0, 0]


def time_mask(spans: Tensor, time: Span, soften: float = 0.0) -> Tensor:
    """1 for the tokens that reach into a time, else 0: spans [N, 2] → float32 [N].

    soften: seconds from each edge of the time inwards in which the mask rises to 1, by the distance of the token's
    middle from the edge; the beginning and the end of the clip are no edges.
    """
    starts, ends = spans.unbind(1)
    first, last = (torch.tensor(edge, dtype=torch.float32) for edge in time)
    mask = ((ends > first) & (starts < last)).float()
    if soften:
        middle = (starts + ends) / 2
        inside = torch.full_like(middle, math.inf)
        if first > starts.min():
            inside = torch.minimum(inside, middle - first)
        if last < ends.max():
            inside = torch.minimum(inside, last - middle)
        mask = mask * (inside / soften).clamp(LEAST, 1)
    return mask


def outside_mask(spans: Tensor, time: Span, slack: float) -> Tensor:
    """1 for the tokens that are not wholly within a time, else 0: spans [N, 2] → float32 [N]. slack: seconds by which
    one may reach out of it."""
    starts, ends = spans.unbind(1)
    return ((starts < time[0] - slack) | (ends > time[1] + slack)).float()


def ramped(made: Tensor, length: int) -> Tensor:
    """Weights of frames or samples that were made (1) or kept (0), float32 [N] → the same weights, which rise over the
    first `length` values of 1 at each edge between both. The beginning and the end are no edges."""
    ramp = torch.arange(1, length + 1) / (length + 1)
    weights = made.clone()
    for edge in (torch.nonzero(made.diff()).flatten() + 1).tolist():
        if made[edge]:  # it rises
            part = weights[edge : edge + length]
            torch.minimum(part, ramp[: len(part)], out=part)
        else:
            part = weights[max(0, edge - length) : edge]
            torch.minimum(part, ramp.flip(0)[length - len(part) :], out=part)
    return weights
