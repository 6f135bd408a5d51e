"""Rotary embeddings are those of diffusers' module, bit for bit."""

from __future__ import annotations

import pytest
import torch
from a2v.ltx.diffusion.modulation import rotary
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from torch import nn

SIZES = {"video": (4096, 32), "audio": (2048, 32), "cross_video": (2048, 32), "cross_audio": (2048, 32)}


class Model(nn.Module):
    def __init__(self, **more: object) -> None:
        super().__init__()

        def module(name: str) -> nn.Module:
            dim, heads = SIZES[name]
            kind = name.removeprefix("cross_")
            return LTX2AudioVideoRotaryPosEmbed(dim, num_attention_heads=heads, modality=kind, **more)

        self.rope, self.audio_rope = module("video"), module("audio")
        self.cross_attn_rope, self.cross_attn_audio_rope = module("cross_video"), module("cross_audio")


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["split", "interleaved"])
def test_they_are_those_of_the_module(kind: str, double: bool) -> None:
    model = Model(rope_type=kind, double_precision=double)
    draw = torch.Generator().manual_seed(4)
    video = torch.rand(1, 3, 30, 2, generator=draw) * torch.tensor([5.0, 576.0, 1024.0])[:, None, None]
    video[:, 0] = video[:, 0, ::5].repeat_interleave(5, 1)  # as the tokens of a frame have one time
    audio = torch.rand(1, 1, 7, 2, generator=draw) * 5
    found = rotary(model, video, audio, torch.device("cpu"))
    expected = {
        "video": model.rope(video),
        "audio": model.audio_rope(audio),
        "cross_video": model.cross_attn_rope(video[:, :1]),
        "cross_audio": model.cross_attn_audio_rope(audio),
    }
    for name, pair in expected.items():
        for ours, its in zip(getattr(found, name), pair, strict=True):
            if kind == "split":  # [1, heads, N, half] → [N, 1, heads, half]
                its = its[0].transpose(0, 1)[:, None]
                ours = ours.repeat_interleave(len(its) // len(ours), 0)  # one for each group of a position
            assert torch.equal(ours, its), name
