"""Encodes a prompt: Gemma 3's hidden states go through the checkpoint's connectors and become a context for the video
and one for the audio. It encodes one prompt at a time.

gemma.py loads Gemma, expand.py writes a fuller prompt, and contexts.py keeps the results.
"""

from __future__ import annotations

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from einops import rearrange
from torch import Tensor

from ..diffusion.conditioning import TEXT_LENGTH, TextContext
from ..errors import InputError
from ..trace import Trace
from .gemma import WANTED, Gemma


def tokenize(gemma: Gemma, text: str) -> list[int]:
    """Token ids of the stripped text, with one <bos> in front and without <eos>. They are not cut to any length."""
    ids = gemma.tokenizer(text.strip(), add_special_tokens=False, verbose=False).input_ids
    return [gemma.tokenizer.bos_token_id, *ids]


@torch.no_grad()
def hidden_states(gemma: Gemma, text: str) -> tuple[Tensor, Tensor]:
    """Computes every hidden state of the text: the embeddings first, the last state after Gemma's norm.

    Returns states [layers + 1, 1, 1024, D] in the model's dtype and mask [1, 1024]. The padding is on the left; the
    states are 0 there, and the mask is 1 at tokens.
    """
    language = gemma.model.model.language_model  # the vision tower and the head with its 262k logits are not needed
    device = gemma.model.device
    ids = torch.tensor([tokenize(gemma, text)[:TEXT_LENGTH]], device=device)
    # The padding is masked and its states are set to 0 later. So the tokens alone, at their positions after the
    # padding, give the same result.
    start = TEXT_LENGTH - ids.shape[1]
    positions = torch.arange(start, TEXT_LENGTH, device=device).unsqueeze(0)
    output = language(input_ids=ids, position_ids=positions, use_cache=False, output_hidden_states=True)
    first = output.hidden_states[0]
    states = first.new_zeros(len(output.hidden_states), 1, TEXT_LENGTH, first.shape[-1])
    for layer, state in zip(states, output.hidden_states, strict=True):
        layer[:, start:] = state
    mask = (torch.arange(TEXT_LENGTH, device=device) >= start).long().unsqueeze(0)
    return states, mask


@torch.no_grad()
def encode_text(
    gemma: Gemma,
    connectors: LTX2TextConnectors,
    text: str,
    trace: Trace | None = None,
) -> TextContext:
    """Prompt → context on the connectors' device and in their dtype. `trace` receives the intermediate tensors.

    Raises InputError if Gemma's size differs from the size that the checkpoint's projection was trained with.
    """
    states, mask = hidden_states(gemma, text)
    layers, _, _, width = states.shape
    wanted = connectors.config.text_proj_in_factor, connectors.config.caption_channels
    if (layers, width) != wanted:
        raise InputError(
            f"{gemma.path}: gives {layers} hidden states of width {width}, but the checkpoint needs "
            f"{wanted[0]} of width {wanted[1]}; use the Gemma that it was trained with, {WANTED}."
        )
    features = rearrange(states, "layer batch token width -> batch token width layer")
    features = features.to(connectors.device, connectors.dtype)
    video, audio, _ = connectors(features, mask.to(connectors.device))
    if trace is not None:
        for name, tensor in (("hidden_states", states), ("mask", mask), ("video_enc", video), ("audio_enc", audio)):
            trace(name, tensor)
    return TextContext(video, audio, len(tokenize(gemma, text)))
