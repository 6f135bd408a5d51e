"""What groups of video tokens see of each other in the self-attention, and how much.

The tokens of the clip see all. A reference with an attention below 1 is seen less, and sees less: its weight is a
factor of the attention before normalisation, so its logarithm is added to the scores. The weights depend on the groups
alone. A group therefore attends to the groups that it sees, with one row of logarithms for all of its tokens, and no
matrix of all pairs of tokens is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .tokens import joined

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(queries [R, n, heads, d], keys and values [R, m, heads, d], row of logarithms [1, 1, 1, m] or None) → [R, n, heads,
d]."""


@dataclass(frozen=True)
class Sight:
    """sizes: the number of tokens of each group, in their order. weights: for each group, how much it sees of each of
    the groups, from 0 (nothing) to 1."""

    sizes: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, grid: int, keyframes: int, references: Sequence[tuple[int, float]]) -> Sight | None:
        """The groups of a stage: the clip's grid, its keyframes, and each reference with its attention. None if all
        tokens see all.

        From the first reference with an attention below 1 on, a reference and what stands between it and the grid see
        nothing of each other, as in the official pipeline.
        """
        if all(attention == 1 for _, attention in references):
            return None
        sizes, weights, split = [grid, keyframes], [[1.0, 1.0], [1.0, 1.0]], False
        for size, attention in references:
            split = split or attention < 1
            with_others = [attention, *(0.0 if split else 1.0 for _ in sizes[1:])]
            for row, weight in zip(weights, with_others, strict=True):
                row.append(weight)
            weights.append([*with_others, 1.0])
            sizes.append(size)
        return cls(tuple(sizes), tuple(map(tuple, weights)))

    def matrix(self) -> Tensor:
        """The weights of all pairs of tokens, float32 [1, N, N]: rows see columns."""
        sizes = torch.tensor(self.sizes)
        return torch.tensor(self.weights).repeat_interleave(sizes, 0).repeat_interleave(sizes, 1)[None]

    def views(self, device: torch.device, dtype: torch.dtype) -> tuple[View, ...]:
        """The same for the attention of a stage, as tensors on its device."""
        edges = list(pairwise(accumulate(self.sizes, initial=0)))
        found = []
        for (start, stop), row in zip(edges, self.weights, strict=True):
            if start == stop:
                continue
            seen = [(edge, math.log(weight)) for edge, weight in zip(edges, row, strict=True) if weight > 0]
            logs = torch.cat([torch.full((b - a,), log) for (a, b), log in seen])
            bias = logs.to(device, dtype)[None, None, None] if logs.any() else None
            found.append(View(start, stop, _merged([edge for edge, _ in seen]), bias))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class View:
    """What one group sees. start, stop: its tokens. seen: the stretches of tokens that it sees. bias: [1, 1, 1, m], the
    logarithm of the weight of each of these tokens, None if all are 0."""

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]
    bias: Tensor | None


def attend_in_groups(views: Sequence[View], query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """Attention of all tokens [R, N, heads, d], group by group."""
    parts = []
    for view in views:
        keys, values = (joined([each[:, start:stop] for start, stop in view.seen], 1) for each in (key, value))
        parts.append(attend(query[:, view.start : view.stop], keys, values, view.bias))
    return torch.cat(parts, dim=1)


def _merged(stretches: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same stretches; neighbours become one, and empty ones are left out."""
    found: list[tuple[int, int]] = []
    for start, stop in stretches:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        elif start < stop:
            found.append((start, stop))
    return tuple(found)
