"""A LoRA in training adds what the pack merges out of its file; the teacher combines as the pack's guidance does."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.weights.lora import applied, load_lora
from a2v.mini import adapters, dataset, export, flow, sizes, text
from a2v.mini.training import Options

PROMPT = "a red round face on the left is talking on a navy background"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> text.Prompts:
    return text.Prompts(text.write_gemma(tmp_path_factory.mktemp("gemma")))


@pytest.fixture(scope="module")
def batch() -> flow.Batch:
    g = torch.Generator().manual_seed(3)
    clip = dataset.Clip(
        (PROMPT,),
        {"small": torch.randn(sizes.LIVE, 3, 2, 2, generator=g)},
        {("small", f): torch.randn(sizes.LIVE, 1, 2, 2, generator=g) for f in (17, 9)},
        torch.randn(8, 20, 16, generator=g),
    )
    made = flow.make_batch([clip], np.random.default_rng(2), torch.Generator().manual_seed(2), 2, "small")
    return flow.replace(made, texts=(PROMPT, PROMPT), isolated=False)


def model() -> flow.Model:
    torch.manual_seed(0)
    made = flow.Model().eval().requires_grad_(False)
    made.transformer.proj_out.weight[: sizes.LIVE].normal_(0, 0.1)
    return made


def test_hooks_add_what_the_pack_merges(batch: flow.Batch, prompts: text.Prompts, tmp_path: Path) -> None:
    trained = model()
    lora = adapters.Lora(trained.transformer, 3, blocks_only=False).requires_grad_(False)
    for up in lora.up:
        up.copy_((0.1 * torch.randn(up.shape)).bfloat16())
    for down in lora.down:
        down.copy_(down.bfloat16())
    ours = flow.predict(trained, batch, prompts, flow.TEXT_LENGTH)
    lora.on = False
    without = flow.predict(trained, batch, prompts, flow.TEXT_LENGTH)
    file = load_lora(export.export_lora(tmp_path / "lora.safetensors", lora.factors(lora.state_dict())))
    clean = model()
    weights = {name: p.clone() for name, p in clean.transformer.named_parameters()}
    with applied(clean.transformer, [(file, 1.0)], weights.__getitem__):
        theirs = flow.predict(clean, batch, prompts, flow.TEXT_LENGTH)
    assert (ours[0] - without[0]).abs().max() > 0.05
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_the_teacher_is_guided_as_the_pack_guides(batch: flow.Batch, prompts: text.Prompts) -> None:
    trained = model()
    lora = adapters.Lora(trained.transformer, 2, blocks_only=True).requires_grad_(False)
    one = flow.replace(
        batch, **{k: v[:1] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}, texts=(PROMPT,)
    )
    one = flow.replace(one, video_mask=torch.ones_like(one.video_mask), video_sigma=torch.tensor([0.6]))
    velocity = adapters.guided(trained, one, prompts, flow.TEXT_LENGTH, lora)
    runs = [
        flow.predict(trained, flow.replace(one, **change), prompts, flow.TEXT_LENGTH)[0]
        for change in ({}, {"texts": (flow.NEGATIVE_PROMPT,)}, {"isolated": True})
    ]
    cond, uncond, alone = (one.video - v * 0.6 for v in runs)
    guidance = Guidance(cfg=adapters.CFG, stg=0, rescale=adapters.RESCALE, modality=adapters.MODALITY)
    wanted = guidance.combine(cond=cond, uncond=uncond, isolated=alone)
    torch.testing.assert_close(one.video - velocity * 0.6, wanted, rtol=1e-4, atol=1e-4)


def test_the_upscaler_learns_on_clips_of_both_lengths(tmp_path: Path) -> None:
    def clip(frames: int) -> dataset.Clip:
        count = (frames - 1) // 8 + 1
        latents = {name: torch.randn(sizes.LIVE, count, n, n) for name, n in (("small", 2), ("large", 4))}
        ends = {(name, frames): torch.zeros(sizes.LIVE, 1, n, n) for name, n in (("small", 2), ("large", 4))}
        return dataset.Clip(("a face",), latents, ends, torch.zeros(8, 51, 16))

    vae = types.SimpleNamespace(latents_mean=torch.zeros(sizes.LATENT), latents_std=torch.ones(sizes.LATENT))
    options = Options(seconds=1e-9)
    stage = adapters.train_upscaler(tmp_path, options, [clip(49), clip(97)], vae)
    assert stage.step == 1
