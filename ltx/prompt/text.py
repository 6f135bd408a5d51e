"""Text to context: Gemma 3's hidden states, then the checkpoint's connectors. One prompt at a time, in both widths.

Loading Gemma is gemma.py's business, writing a better prompt expand.py's, and encoding none twice contexts.py's.
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
    """Token ids of the stripped text after one <bos>, without <eos> and uncut."""
    ids = gemma.tokenizer(text.strip(), add_special_tokens=False, verbose=False).input_ids
    return [gemma.tokenizer.bos_token_id, *ids]


@torch.no_grad()
def hidden_states(gemma: Gemma, text: str) -> tuple[Tensor, Tensor]:
    """Every hidden state of the text, embeddings first, the last one after Gemma's norm, left padded.

    Returns states [layers + 1, 1, 1024, D] in the model's dtype, zero at the padding, and mask [1, 1024], 1 at tokens.
    """
    language = gemma.model.model.language_model  # neither the vision tower nor the head's 262k logits
    device = gemma.model.device
    ids = torch.tensor([tokenize(gemma, text)[:TEXT_LENGTH]], device=device)
    # The padding is masked and later zeroed: running the tokens alone, at their padded positions, gives the same.
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
    """Prompt → context, on the connectors' device and in their dtype. `trace` is shown each named intermediate.

    InputError where Gemma is not the size that the checkpoint's projection was trained on.
    """
    states, mask = hidden_states(gemma, text)
    layers, _, _, width = states.shape
    wanted = connectors.config.text_proj_in_factor, connectors.config.caption_channels
    if (layers, width) != wanted:
        raise InputError(
            f"{gemma.path}: gives {layers} hidden states of width {width}, but the checkpoint takes "
            f"{wanted[0]} of width {wanted[1]}; use the Gemma it was trained with, {WANTED}."
        )
    features = rearrange(states, "layer batch token width -> batch token width layer")
    features = features.to(connectors.device, connectors.dtype)
    video, audio, _ = connectors(features, mask.to(connectors.device))
    if trace is not None:
        for name, tensor in (("hidden_states", states), ("mask", mask), ("video_enc", video), ("audio_enc", audio)):
            trace(name, tensor)
    return TextContext(video, audio, len(tokenize(gemma, text)))
