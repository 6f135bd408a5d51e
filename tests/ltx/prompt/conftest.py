"""A tiny text model that says what a test wants. It has learned nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from a2v.ltx.prompt.gemma import Gemma
from torch import Tensor, nn


@pytest.fixture
def gemma(loaded: Gemma) -> Iterator[Gemma]:
    """`loaded`, which each file has for itself, held to tokens with letters. It never ends, so it is asked for few."""
    size = loaded.model.lm_head.out_features
    mute = torch.tensor([not any(map(str.isalpha, loaded.tokenizer.decode(i))) for i in range(size)])
    mute[[number for number, token in loaded.tokenizer.added_tokens_decoder.items() if token.special]] = True
    hook = loaded.model.lm_head.register_forward_hook(lambda _, __, scores: scores.masked_fill(mute, -1e4))
    yield loaded
    hook.remove()


@pytest.fixture
def says(gemma: Gemma) -> Iterator[Callable[[str], None]]:
    """says(text): from now on the LM head spells that text, whatever it is asked."""
    handles = []

    def script(text: str) -> None:
        tokens = iter(gemma.tokenizer(text, add_special_tokens=False).input_ids)

        def spell(_: nn.Module, __: tuple, scores: Tensor) -> Tensor:
            forced = torch.full_like(scores, -1e4)
            forced[..., next(tokens)] = 1e4
            return forced

        handles.append(gemma.model.lm_head.register_forward_hook(spell))

    yield script
    for handle in handles:
        handle.remove()
