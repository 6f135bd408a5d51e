"""Masks of tokens over time: which latents of picture and sound an edit makes anew.

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
