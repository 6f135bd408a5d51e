"""Neighbourhood attention in three dimensions, exact, in blocks, on any device: the diffusion decoder's attention.

Every query attends to a window of the kernel's size around it. Near an edge the window moves inwards, so that it always
holds the same number of positions (Hassani et al. 2023, arXiv 2204.07143). The package NATTEN has kernels for this on
CUDA, and they are used where they are installed. Elsewhere the queries are taken in blocks: each block attends, under a
mask, to the box of keys that its windows lie in. The scores of all queries against all keys never exist at once, so
that memory is bounded whatever the size of the video.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoVaeNeighborhoodAttention
from einops import rearrange
from torch import Tensor, nn

from ..classes import give_classes

Triple = tuple[int, int, int]
BATCH = 1 << 26
"""How many scores and how many values of keys one call of attention may have: the first bounds devices that keep the
scores, the second bounds what is gathered."""
SMALLEST, LARGEST = 4, 8  # sides of a block of queries: a larger block gathers less and masks more out
NATTEN = "LTX_A2V_NATTEN"  # 0 in the environment: the package is not used, though it is installed


@dataclass(frozen=True)
class Axis:
    """One axis, cut into blocks of the same length.

    queries, keys: where each block's queries and keys begin. block, box: how many of each a block has. first: for each
    block, where the window of each of its queries begins, counted from the block's first key. kernel: the window's
    length.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    block: int
    box: int
    first: tuple[tuple[int, ...], ...]
    kernel: int

    def sees(self, first: tuple[int, ...]) -> Tensor:
        """Which query of a block sees which key: bool [block, box]."""
        key, begin = torch.arange(self.box), torch.tensor(first)[:, None]
        return (key >= begin) & (key < begin + self.kernel)


@cache
def axis(length: int, kernel: int) -> Axis:
    """An axis of `length` positions under a window of `kernel`. The last block may overlap the one before it."""
    kernel = min(kernel, length)
    block = min(length, max(SMALLEST, min(-(-kernel // 2), LARGEST)))
    box = min(length, block + kernel - 1)
    queries = (*range(0, length - block, block), length - block)
    keys = tuple(_within(start - kernel // 2, length - box) for start in queries)
    first = tuple(
        tuple(_within(query - kernel // 2, length - kernel) - key for query in range(start, start + block))
        for start, key in zip(queries, keys, strict=True)
    )
    return Axis(queries, keys, block, box, first, kernel)


def _within(place: int, last: int) -> int:
    return max(0, min(place, last))


def attend(query: Tensor, key: Tensor, value: Tensor, kernel: Sequence[int]) -> Tensor:
    """Neighbourhood attention of tensors [B, T, H, W, heads, d] under a window over (T, H, W) → the same shape.

    The query carries its scale already. A window longer than an axis is the whole axis.
    """
    axes = [axis(length, size) for length, size in zip(query.shape[1:4], kernel, strict=True)]
    batch, heads, width = query.shape[0], *query.shape[4:]
    result = torch.empty_like(query)
    for firsts in product(*(dict.fromkeys(each.first) for each in axes)):  # blocks under the same mask
        mask = _together(*(each.sees(first) for each, first in zip(axes, firsts, strict=True))).to(query.device)
        alike = [
            [number for number, each in enumerate(a.first) if each == first]
            for a, first in zip(axes, firsts, strict=True)
        ]
        blocks = list(product(*alike))
        most = max(1, BATCH // (batch * heads * mask.shape[1] * max(mask.shape[0], width)))
        for start in range(0, len(blocks), most):
            chosen = blocks[start : start + most]
            asking = _places([(a.queries, a.block) for a in axes], chosen, query.device)
            asked = _places([(a.keys, a.box) for a in axes], chosen, query.device)
            attended = F.scaled_dot_product_attention(
                *(_rows(tensor[at]) for tensor, at in ((query, asking), (key, asked), (value, asked))),
                attn_mask=mask,
                scale=1.0,
            )
            result[asking] = rearrange(
                attended,
                "(b n) heads (t h w) d -> b n t h w heads d",
                n=len(chosen),
                t=axes[0].block,
                h=axes[1].block,
            )
    return result


def _together(time: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Masks [block, box] of the three axes → one of all queries and keys: bool [queries, keys]."""
    joined = time[:, None, None, :, None, None] & height[:, None, None, :, None] & width[:, None, None, :]
    return joined.flatten(3).flatten(0, 2)


def _places(
    axes: Sequence[tuple[tuple[int, ...], int]], blocks: Sequence[Triple], device: torch.device
) -> tuple[slice | Tensor, ...]:
    """The index into [B, T, H, W, …] of every position of these blocks: the result is [B, blocks, t, h, w, …].

    axes: of each axis, where blocks begin and how long they are.
    """
    found: list[slice | Tensor] = [slice(None)]
    for number, (starts, length) in enumerate(axes):
        begin = torch.tensor([starts[block[number]] for block in blocks])
        places = begin[:, None] + torch.arange(length)
        shape = [len(blocks), 1, 1, 1]
        shape[number + 1] = length
        found.append(places.view(shape).to(device))
    return tuple(found)


def _rows(blocks: Tensor) -> Tensor:
    """[B, blocks, t, h, w, heads, d] → [B · blocks, heads, t · h · w, d]."""
    return rearrange(blocks, "b n t h w heads d -> (b n) heads (t h w) d")


class Layer(LTX2VideoVaeNeighborhoodAttention):
    """diffusers' layer, its weights and its projections, over this file's attention; windows fit into any volume.

    `continued`: the volume is continued across the width by copies of its first and last column, so that windows there
    stay centred. The official code decodes so by default, where it cuts the volume into slabs.
    """

    continued = False

    def build_block_mask(self, hidden_states: Tensor) -> None:
        """diffusers would build the whole mask here; none is needed."""

    def forward(self, hidden_states: Tensor, block_mask: None = None) -> Tensor:
        """[B, T, H, W, C] → the same shape."""
        margin = self.kernel_size[2] // 2 if self.continued else 0
        width = hidden_states.shape[3]
        if margin:
            places = torch.arange(-margin, width + margin, device=hidden_states.device).clamp(0, width - 1)
            hidden_states = hidden_states[:, :, :, places]
        query, key, value = self.project_qkv(hidden_states)
        attended = _chosen(query, self.kernel_size)(query, key, value, self.kernel_size)
        return self.to_out[0](attended[:, :, :, margin : margin + width].flatten(4))


def adopt(decoder: nn.Module) -> None:
    """Gives a diffusion decoder's attention layers this file's forward. Doing it again changes nothing."""
    give_classes(decoder.modules(), {LTX2VideoVaeNeighborhoodAttention: Layer})


def _chosen(query: Tensor, kernel: Sequence[int]) -> Callable[..., Tensor]:
    """NATTEN's attention where it has kernels for it, else the one above."""
    fits = all(length >= size > 1 for length, size in zip(query.shape[1:4], kernel, strict=True))
    return _natten if query.is_cuda and fits and natten() is not None else attend


@cache
def natten() -> Any | None:
    """The package NATTEN, if it is installed with its kernels and not switched off; without them it is no faster."""
    if os.environ.get(NATTEN) == "0":
        return None
    try:
        import natten as package
    except (ImportError, OSError):  # the second: built for another torch
        return None
    return package if getattr(package, "HAS_LIBNATTEN", False) else None


def _natten(query: Tensor, key: Tensor, value: Tensor, kernel: Sequence[int]) -> Tensor:
    """As `attend`. Its kernels read contiguous tensors alone, and do not say so."""
    contiguous = (tensor.contiguous() for tensor in (query, key, value))
    return natten().na3d(*contiguous, kernel_size=tuple(kernel), scale=1.0)
