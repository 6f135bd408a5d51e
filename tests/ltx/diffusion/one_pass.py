"""One pass of the transformer, by the engine and by diffusers' own forward: shared by the tests of both versions."""

from __future__ import annotations

from fractions import Fraction

import torch
from a2v.ltx import latents
from a2v.ltx.diffusion.block import adopt
from a2v.ltx.diffusion.modulation import Levels, modulation, rotary
from a2v.ltx.diffusion.passes import Pass, velocities
from a2v.ltx.diffusion.tokens import Tokens
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformerBlock
from torch import Tensor

FPS = Fraction(24)
GRID = (2, 2, 3)
SOUND = 9
# What a run can be: the sigma, the audio frozen or as noisy as the video, a first image, STG, no attention between.
CASES = {
    "equal sigmas": {"frozen": False},
    "frozen": {},
    "first image": {"image": 0.4},
    "low sigma": {"sigma": 0.03, "image": 1.0},
    "stg": {"perturbed": (1,)},
    "stg twice": {"perturbed": (0, 1), "frozen": False},
    "stg of the audio": {"perturbed": (1,), "perturbed_audio": (0,), "frozen": False},
    "isolated": {"isolated": True, "image": 0.4},
}


class Case:
    """Inputs of one pass; `ours` is what the engine makes of them."""

    def __init__(
        self,
        model,
        randn,
        sigma=0.7,
        frozen=True,
        image=0.0,
        perturbed=(),
        perturbed_audio=(),
        isolated=False,
        dtype=torch.float32,
    ):
        self.model, self.isolated, self.dtype = model, isolated, dtype
        self.perturbed, self.perturbed_audio = perturbed, perturbed_audio
        count = GRID[0] * GRID[1] * GRID[2]
        self.sigma = torch.tensor([sigma])
        self.sound = torch.zeros(1) if frozen else self.sigma
        self.levels = self.sigma.repeat(1, count)
        self.levels[:, : count // GRID[0]] *= 1 - image
        self.sound_levels = self.sound.repeat(1, SOUND)
        self.x = Tokens(randn(1, count, 128).to(dtype), randn(1, SOUND, 128).to(dtype))
        config = model.config
        self.text = randn(1, 16, config.cross_attention_dim).to(dtype)
        self.heard = randn(1, 16, config.audio_cross_attention_dim).to(dtype)
        self.where = latents.video_positions(GRID, FPS), latents.audio_positions(SOUND)
        self.marked = (torch.arange(count) < count // GRID[0]).float().view(1, -1, 1)

    def ours(self) -> Tokens:
        one = Pass(self.text, self.heard, self.perturbed, self.perturbed_audio, self.isolated)
        return self.run([one])[0]

    def run(self, passes: list[Pass], **options: object) -> list[Tokens]:
        adopt(self.model)
        levels = Levels.of(self.levels), Levels.of(self.sound_levels)
        adaln = modulation(self.model, *levels, self.sigma, self.sound, self.dtype)
        places = rotary(self.model, *self.where, torch.device("cpu"))
        return [
            Tokens(*pair)
            for pair in velocities(self.model, self.x, passes, places, adaln, **{"marked": self.marked, **options})
        ]


def guided_step(run: Case) -> list[Pass]:
    """The passes of a guided step: cond, uncond, STG of block 28 of 48 (1 of 4), isolated."""
    other = run.text.flip(1)
    stg = (28,) if len(run.model.transformer_blocks) == 48 else (1,)
    return [
        Pass(run.text, run.heard),
        Pass(other, run.heard),
        Pass(run.text, run.heard, stg),
        Pass(run.text, run.heard, isolated=True),
    ]


def by_diffusers(
    run: Case, *, gates: bool = True, audio_stg: bool = False, sound: Tensor | None = None, marked: bool = True
) -> tuple:
    """diffusers' own forward. gates: each gate is fed the other stream's sigma; audio_stg: as diffusers perturbs;
    marked: the model's keyframe vector, if it has one, is added to latent frame 0."""
    model, handles = run.model, []
    for block in model.transformer_blocks:
        block.__class__ = LTX2VideoTransformerBlock  # with diffusers' own forward
    sound = run.sound if sound is None else sound
    if gates:
        for module, sigma in (
            (model.av_cross_attn_video_a2v_gate, sound),
            (model.av_cross_attn_audio_v2a_gate, run.sigma),
        ):
            level = sigma * model.config.cross_attn_timestep_scale_multiplier
            handles.append(module.register_forward_pre_hook(lambda _, args, level=level: (level, *args[1:])))
    if not audio_stg:
        stripped = {"perturbation_mask": None, "all_perturbed": False}  # plain attention's arguments
        blocks = model.transformer_blocks
        for attention in [blocks[n].audio_attn1 for n in set(run.perturbed) - set(run.perturbed_audio)] + [
            blocks[n].attn1 for n in set(run.perturbed_audio) - set(run.perturbed)
        ]:
            handles.append(
                attention.register_forward_pre_hook(
                    lambda _, args, kwargs: (args, {**kwargs, **stripped}), with_kwargs=True
                )
            )
    result = model(
        hidden_states=run.x.video,
        audio_hidden_states=run.x.audio,
        encoder_hidden_states=run.text,
        audio_encoder_hidden_states=run.heard,
        timestep=run.levels * 1000,
        audio_timestep=run.sound_levels * 1000,
        sigma=run.sigma * 1000,
        audio_sigma=sound * 1000,
        video_coords=run.where[0],
        audio_coords=run.where[1],
        isolate_modalities=run.isolated,
        spatio_temporal_guidance_blocks=sorted({*run.perturbed, *run.perturbed_audio}),
        return_dict=False,
        **({"video_keyframes_mask": run.marked} if marked and hasattr(model, "keyframes_abs_pos_embedding") else {}),
    )
    for handle in handles:
        handle.remove()
    return result
