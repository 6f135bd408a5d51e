"""Encodes prompts: Gemma's hidden states go through the checkpoint's connectors and become a context for the video and
one for the audio.

Several texts take one walk through Gemma: a layer computes one text after the other, and then the next layer begins. So
a layer that waits in host memory is fetched once for all of them, and the numbers are those of each text alone, as they
would not be in a batch. gemma.py loads Gemma, expand.py writes a fuller prompt, and contexts.py keeps the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from diffusers.pipelines.ltx2.connectors import LTX2RotaryPosEmbed1d, LTX2TextConnectors
from einops import rearrange
from torch import Tensor, nn

from ..classes import give_classes
from ..computing import WITH_FLOAT64
from ..diffusion.conditioning import TEXT_LENGTH, TextContext
from ..errors import InputError
from ..trace import Trace
from .gemma import WANTED, Gemma

WALK = 2 * TEXT_LENGTH
"""Tokens of all texts of a walk. Their hidden states are held until the walk ends: 0.8 GB for Gemma 3 12B in bfloat16.
Two texts of the greatest length fit, so that a prompt and its negative prompt always take one walk."""
OnLayer = Callable[[int, int], object]
"""A function that is called with (calls done, all calls) of Gemma's layers and of the connectors. It may raise."""


def tokenize(gemma: Gemma, text: str) -> list[int]:
    """Token ids of the stripped text, with one <bos> in front and without <eos>. They are not cut to any length."""
    ids = gemma.tokenizer(text.strip(), add_special_tokens=False, verbose=False).input_ids
    return [gemma.tokenizer.bos_token_id, *ids]


class _Notes(nn.Module):
    """Stands for each layer in a run of the language model: it notes what the layer is called with beside the hidden
    states, and returns these as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.embeddings: Tensor | None = None

    def forward(self, states: Tensor, *given: Any, **named: Any) -> Tensor:
        self.embeddings = states
        self.calls.append((given, named))
        return states


@dataclass(frozen=True, eq=False)
class _Walker:
    """A text on its walk. states: those that were computed so far, [1, tokens, D] each, the embeddings first; calls:
    what each layer is called with beside them."""

    states: list[Tensor]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, language: nn.Module, ids: Tensor, positions: Tensor) -> _Walker:
        """Lets the language model's own forward prepare its masks and rotations, with `_Notes` in place of its layers.
        A copy of the module, which shares all weights, has them, so that the model itself stays as it is."""
        notes, prepared = _Notes(), copy(language)
        prepared._modules = {**language._modules, "layers": nn.ModuleList([notes] * len(language.layers))}
        prepared(input_ids=ids, position_ids=positions, use_cache=False)
        return cls([notes.embeddings], notes.calls)

    def enter(self, number: int, layer: nn.Module) -> None:
        given, named = self.calls[number]
        self.states.append(layer(self.states[-1], *given, **named))

    def padded(self) -> tuple[Tensor, Tensor]:
        """The states and the mask as `hidden_states` returns them. The text's own states are freed."""
        first = self.states[0]
        start = TEXT_LENGTH - first.shape[1]
        states = first.new_zeros(len(self.states), 1, TEXT_LENGTH, first.shape[-1])
        for layer, state in zip(states, self.states, strict=True):
            layer[:, start:] = state
        self.states.clear()
        mask = (torch.arange(TEXT_LENGTH, device=first.device) >= start).long().unsqueeze(0)
        return states, mask


def _walk(gemma: Gemma, texts: Iterable[Sequence[int]], on_call: Callable[[], object]) -> list[_Walker]:
    """Takes texts, given as their token ids, through all layers together. on_call: is called after each call of a
    layer."""
    language = gemma.model.model.language_model  # the vision tower and the head with its 262k logits are not needed
    device = gemma.model.device
    walkers = []
    for each in texts:
        ids = torch.tensor([each[:TEXT_LENGTH]], device=device)
        # The padding is masked and its states are set to 0 later. So the tokens alone, at their positions after the
        # padding, give the same result.
        positions = torch.arange(TEXT_LENGTH - ids.shape[1], TEXT_LENGTH, device=device).unsqueeze(0)
        walkers.append(_Walker.of(language, ids, positions))
    for number, layer in enumerate(language.layers):
        for walker in walkers:
            walker.enter(number, layer)
            on_call()
    for walker in walkers:
        walker.states[-1] = language.norm(walker.states[-1])
    return walkers


@torch.no_grad()
def hidden_states(gemma: Gemma, text: str) -> tuple[Tensor, Tensor]:
    """Computes every hidden state of the text: the embeddings first, the last state after Gemma's norm.

    Returns states [layers + 1, 1, 1024, D] in the model's dtype and mask [1, 1024]. The padding is on the left; the
    states are 0 there, and the mask is 1 at tokens.
    """
    (walker,) = _walk(gemma, [tokenize(gemma, text)], lambda: None)
    return walker.padded()


def walks(lengths: Iterable[int]) -> list[list[int]]:
    """Divides texts of so many tokens into walks of at most WALK tokens, in their order. Returns the numbers of the
    texts of each walk."""
    found: list[list[int]] = []
    room = 0
    for number, length in enumerate(min(each, TEXT_LENGTH) for each in lengths):
        if length > room:
            found.append([])
            room = WALK
        found[-1].append(number)
        room -= length
    return found


@torch.no_grad()
def encode_texts(
    gemma: Gemma,
    connectors: LTX2TextConnectors,
    texts: Sequence[str],
    traces: Sequence[Trace | None] = (),
    on_layer: OnLayer | None = None,
) -> Iterator[TextContext]:
    """Prompts → their contexts, in order, on the connectors' device and in their dtype; each walk begins when its first
    context is asked for. traces: for each text, what receives its intermediate tensors.

    Raises InputError if Gemma's size differs from the size that the checkpoint's projection was trained with.
    """
    ids = [tokenize(gemma, text) for text in texts]
    traces = traces or [None] * len(ids)
    done, total = count(1), len(ids) * (len(gemma.model.model.language_model.layers) + 1)

    def called() -> None:
        if on_layer is not None:
            on_layer(next(done), total)

    for numbers in walks(map(len, ids)):
        walkers = _walk(gemma, [ids[number] for number in numbers], called)
        for number in numbers:
            states, mask = walkers.pop(0).padded()
            context = connect(gemma, connectors, states, mask, len(ids[number]), traces[number])
            del states
            called()
            yield context


def encode_text(gemma: Gemma, connectors: LTX2TextConnectors, text: str, trace: Trace | None = None) -> TextContext:
    """`encode_texts` for one text."""
    return next(encode_texts(gemma, connectors, [text], [trace]))


def connect(
    gemma: Gemma, connectors: LTX2TextConnectors, states: Tensor, mask: Tensor, tokens: int, trace: Trace | None
) -> TextContext:
    """Gemma's hidden states [layers + 1, 1, 1024, D] with their mask → the context of a text of so many tokens. Raises
    InputError as `encode_texts`."""
    layers, _, _, width = states.shape
    wanted = connectors.config.text_proj_in_factor, connectors.config.caption_channels
    if (layers, width) != wanted:
        raise InputError(
            f"{gemma.path}: gives {layers} hidden states of width {width}, but the checkpoint needs "
            f"{wanted[0]} of width {wanted[1]}; use the Gemma that it was trained with, {WANTED}."
        )
    features = rearrange(states, "layer batch token width -> batch token width layer")
    features = features.to(connectors.device, connectors.dtype)
    give_classes(connectors.modules(), {LTX2RotaryPosEmbed1d: Positions})
    video, audio, _ = connectors(features, mask.to(connectors.device))
    if trace is not None:
        for name, tensor in (("hidden_states", states), ("mask", mask), ("video_enc", video), ("audio_enc", audio)):
            trace(name, tensor)
    return TextContext(video, audio, tokens)


class Positions(LTX2RotaryPosEmbed1d):
    """The connectors' rotary embeddings, which begin in float64, for any device."""

    def forward(self, batch_size: int, pos: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        where = device if torch.device(device).type in WITH_FLOAT64 else "cpu"
        cos, sin = super().forward(batch_size, pos, where)
        return cos.to(device), sin.to(device)
