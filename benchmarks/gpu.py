"""The published size on a GPU: the 22B transformer in bfloat16 with random weights, and both stages of a 1024×576×121
clip with frozen audio. Our side runs exactly and at each acceleration level, the official code runs eagerly. It
measures seconds per step and peak memory. Before, both sides compute a step that is compared with float32.

It reads no checkpoint, because both sides make the same weights from the names of the parameters. It needs CUDA with
45 GB of memory, because one model at a time is there, and 20 GB of host memory for offloading. On an H200 all but
decoding took 400 seconds, of which torch.compile took 100. `python benchmarks --small gpu` runs all of it at a toy size
on a CPU.

The device machine has torch, transformers and einops, but not diffusers, PyAV and the peers. Run this once in the root
of the repository:

    echo /.whl/ >> .git/info/exclude
    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d .whl \\
        diffusers==0.42.1 av==18.1.0 ltx-core==1.0.0 ltx-pipelines==1.0.0 importlib-metadata==10.2.0 zipp==4.1.2

and then, with `.whl` in `carry`:

    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl &&
    PYTHONPATH=/tmp/site python3 benchmarks gpu && cp benchmarks/results/gpu.json $OUT

Then copy gpu.json into benchmarks/results/ and run `make bench ARGS=--page` to write the page. If the run is cut, each
part that it finished is in $OUT/gpu.parts.json: copy that into benchmarks/results/, and the same command goes on with
it, on the same kind of card and with the same code. card.py has the list of parts; this file computes them.
"""

from __future__ import annotations

import contextlib
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from a2v.benchmarks.work import GUIDANCE, WHOLE, Clip, contexts, sound, stg_block
from a2v.ltx.diffusion.schedules import DISTILLED, REFINE, SCHEDULES
from safetensors.torch import save_file
from torch import Tensor, nn

CLIP = Clip(121, 576, 1024)
TOY = Clip(9, 128, 128)
STEPS = 15
# The published transformer's sizes; toy ones for a CPU.
LARGE = {"layers": 48, "heads": 32, "head_dim": 128}
LITTLE = {"layers": 3, "heads": 2, "head_dim": 16}
SPREAD = 0.02  # deviation of the random weights, which keeps activations near unit size
STRENGTH = 0.5  # of a LoRA, as the distilled one has it in the second stage
CLOSE = {torch.bfloat16: 0.2, torch.float32: 1e-5}
"""Largest relative L2 of a guided step against float32 on the same weights. Measured in bfloat16: ours 0.07, the
official code 0.12. Two sides in bfloat16 are too far apart (0.13) to say anything about each other."""
NEARER = 1.05  # how much farther than the official code from float32 ours may be


def device(name: str | None = None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def dtype(name: str | None = None) -> torch.dtype:
    return getattr(torch, name or ("bfloat16" if torch.cuda.is_available() else "float32"))


def randomise(model: nn.Module, kind: str | None, place: str | None, rename: Any = str) -> nn.Module:
    """Gives a meta module random weights, the same on both sides. kind, place: their dtype and device. rename: maps its
    parameter names to ours."""
    model = model.to(dtype(kind)).to_empty(device=device(place)).eval().requires_grad_(False)
    if place == "meta":
        return model
    generator = torch.Generator(device(place))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, SPREAD, generator=generator.manual_seed(zlib.crc32(rename(name).encode())))
            if "norm_q" in rename(name) or "norm_k" in rename(name):
                weight += 1
    return model


# official name → diffusers' name where they differ; the patterns apply in this order.
NAMES = (
    (r"^(audio_)?patchify_proj", r"\1proj_in"),
    (r"av_ca_(video|audio)_scale_shift_adaln_single", r"av_cross_attn_\1_scale_shift"),
    (r"av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    (r"av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    (r"scale_shift_table_a2v_ca_(video|audio)", r"\1_a2v_cross_attn_scale_shift_table"),
    (r"^(audio_)?prompt_adaln_single", r"\1prompt_adaln"),
    (r"^(audio_)?adaln_single", r"\1time_embed"),
    (r"([qk])_norm", r"norm_\1"),
)


def renamed(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@contextlib.contextmanager
def clock(steps: int) -> Iterator[dict[str, float]]:
    """Measures seconds per step and, on a GPU, the peak of allocated memory inside `with`."""
    found: dict[str, float] = {}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield found
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        found["allocated"] = torch.cuda.max_memory_allocated()
    found["step"] = (time.perf_counter() - start) / steps


Measure = Callable[[int], AbstractContextManager[dict[str, Any]]]
"""Like `clock`: it gets a number of steps and returns what it found in them."""


def texts(size: dict[str, Any]) -> list[Tensor]:
    """The contexts: video and audio of the positive prompt, then of the negative prompt."""
    width = size["heads"] * size["head_dim"]
    place, kind = device(size.get("device")), dtype(size.get("dtype"))
    return [text.to(place, kind) for text in contexts(width, width // 2)]


def halved(clip: Clip) -> Clip:
    return Clip(clip.frames, clip.height // 2, clip.width // 2, clip.fps)


def schedule(level: str, steps: int) -> Tensor:
    """The first stage's sigmas under a level."""
    return torch.tensor(DISTILLED) if level == "full" else SCHEDULES["beta"](steps)


@cache
def our_model(layers: int, heads: int, head_dim: int, dtype: str | None = None, device: str | None = None) -> nn.Module:
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel(
            num_layers=layers, num_attention_heads=heads, attention_head_dim=head_dim,
            cross_attention_dim=heads * head_dim, audio_num_attention_heads=heads,
            audio_attention_head_dim=head_dim // 2, audio_cross_attention_dim=heads * head_dim // 2,
            in_channels=128, out_channels=128, patch_size=1, patch_size_t=1, vae_scale_factors=(8, 32, 32),
            pos_embed_max_pos=20, base_height=2048, base_width=2048, gated_attn=True, cross_attn_mod=True,
            audio_in_channels=128, audio_out_channels=128, audio_patch_size=1, audio_patch_size_t=1,
            audio_scale_factor=4, audio_pos_embed_max_pos=20, audio_sampling_rate=16000, audio_hop_length=160,
            audio_gated_attn=True, audio_cross_attn_mod=True, activation_fn="gelu-approximate",
            qk_norm="rms_norm_across_heads", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=3840,
            attention_bias=True, attention_out_bias=True, rope_theta=10000.0, rope_double_precision=True,
            causal_offset=1, timestep_scale_multiplier=1000, cross_attn_timestep_scale_multiplier=1000,
            rope_type="split", use_prompt_embeddings=False, perturbed_attn=True,
        )  # fmt: skip
    return randomise(model, dtype, device)


class Widened(nn.Linear):
    """A layer that computes in the dtype of its input, whatever the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def widened(model: nn.Module) -> nn.Module:
    """The model in float32 on the same weights. Those of its linear layers stay as they are, so that it fits a card."""
    for module in model.modules():
        if type(module) is nn.Linear and module is not model.proj_in:  # its dtype is the model's
            module.__class__ = Widened
        else:
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.float(), requires_grad=False))
    return model


def random_pair(layer: nn.Linear, rank: int, kind: torch.dtype | None = None) -> nn.Module:
    """A LoRA pair of this rank, or of the layer's smaller side, on its device. kind: its dtype, by default `dtype()`.
    It changes the weight by a twentieth or so."""
    from a2v.ltx.weights.adapters import LowRank
    from a2v.ltx.weights.quantized import beside

    place = layer.weight.device
    rank = min(rank, layer.in_features, layer.out_features)
    shapes = (rank, layer.in_features), (layer.out_features, rank)
    down, up = (torch.empty(shape, dtype=kind or dtype(), device=place) for shape in shapes)
    if place.type != "meta":
        generator = torch.Generator(place).manual_seed(rank)
        down.normal_(0, SPREAD, generator=generator)
        up.normal_(0, 0.05 / rank**0.5, generator=generator)
    return beside(LowRank(down, up, 1.0))


def prepare(
    model: nn.Module,
    fp8: bool = False,
    fast: bool = False,
    fused: bool = True,
    compiled: bool = False,
    attention: str | None = None,
    rank: int = 0,
) -> None:
    """Makes the model compute in one of the ways of `Compute`. It stays so, and fp8 rounds its weights for good. rank:
    of a LoRA on all quantized layers, as the published distilled one is; 0 for none."""
    from a2v.ltx.computing import TORCH
    from a2v.ltx.diffusion.attention import attend_by
    from a2v.ltx.diffusion.block import adopt
    from a2v.ltx.diffusion.compiled import compile_blocks
    from a2v.ltx.diffusion.kernels import fuse
    from a2v.ltx.weights.quantized import QuantizedLinear, quantize, quicken

    adopt(model)
    if fp8:
        quantize(model, on=model.proj_in.weight.device, to=model.proj_in.weight.device)
    kind = model.proj_in.weight.dtype
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.branches = ((random_pair(layer, rank, kind), STRENGTH),) if rank else ()
    quicken(model, fast)
    fuse(model, fused)
    attend_by(model, attention or TORCH)  # the model may have another way's from before
    compile_blocks(model, compiled)


def offloaded(model: nn.Module, on: bool) -> AbstractContextManager[Any]:
    """Inside `with`, the model's blocks wait in host memory, if `on`; afterwards they are on the device again."""
    if not on:
        return contextlib.nullcontext()
    from a2v.ltx.memory.offload import Placement, offload_transformer

    place = model.proj_in.weight.device

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        model.transformer_blocks.to("cpu")
        try:
            with offload_transformer(model, place, Placement(pinned=place.type == "cuda")):  # as a job with room does
                yield
        finally:
            model.transformer_blocks.to(place)

    return waiting()


@torch.inference_mode()
def ours(
    size: dict[str, Any],
    clip: list[int],
    level: str,
    steps: int,
    save: str | None = None,
    image: bool = False,
    room: float | None = None,
    measured: Measure = clock,
    exact: bool = False,
    how: dict[str, Any] | None = None,
    offload: bool = False,
    early: bool = True,
) -> dict[str, Any]:
    """Runs both stages at a level, if `early` after one step of each; "start" is what these took longer.

    save: run only one exact guided step to sigma 0 and write its latent there. image: whether there is a first image.
    room: as for `sample`. exact: in float32 and without Triton kernels; the model stays in float32. how: as for
    `prepare`. offload: whether the blocks wait in host memory.
    """
    from a2v.ltx.diffusion.acceleration import LEVELS
    from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, TextContext
    from a2v.ltx.diffusion.guidance import Guidance
    from a2v.ltx.diffusion.sample import sample
    from a2v.ltx.diffusion.steering import Steering
    from a2v.ltx.grid import CHANNELS, video_shape
    from a2v.ltx.latents import Noise

    model, whole, place = our_model(**size), Clip(*clip), device(size.get("device"))
    first = halved(whole)
    if exact:
        widened(model)
    prepare(model, **{"fused": not exact, **(how or {})})
    video_text, audio_text, video_negative, audio_negative = texts(size)
    scales = {name.removesuffix("_scale"): value for name, value in GUIDANCE.items()}
    guidance = Guidance(**scales, stg_blocks=(stg_block(size["layers"]),))
    sigmas, positive = schedule(level, steps), TextContext(video_text, audio_text)
    audio = AudioCondition(sound(whole.frames), whole.frames, Fraction(whole.fps))
    blank = torch.zeros(1, CHANNELS, *video_shape(first.frames, first.height, first.width))
    guides = (Guide(blank[:, :, :1], 0, 1.0),) if image else ()
    guided = Conditions(positive, audio, TextContext(video_negative, audio_negative), guides)
    if save:
        steering = Steering(torch.tensor(WHOLE), guidance)
        latent, _, _ = sample(model, blank, guided, steering, Noise(1), device=place, room=room)
        save_file({"latent": latent.float().cpu().contiguous()}, save)
        return {}
    larger = tuple(Guide(doubled(guide.latent), 0, 1.0) for guide in guides)

    def stages(sigmas: Tensor, refine: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        with measured(len(sigmas) - 1) as one:
            steering = Steering(sigmas, guidance, acceleration=LEVELS[level])
            latent, after, noise = sample(model, blank, guided, steering, Noise(1), device=place, room=room)
        with measured(len(refine) - 1) as two:
            last = Conditions(positive, after, guides=larger)
            sample(model, doubled(latent), last, Steering(refine), noise, device=place, room=room)
        return one, two

    refine = torch.tensor(REFINE)
    with offloaded(model, offload):
        before = stages(sigmas[-2:], refine[-2:]) if early else ()
        one, two = stages(sigmas, refine)
    start = sum(step["step"] for step in before) - one["step"] - two["step"]
    return {**both(one, two, len(sigmas) - 1), "start": max(start, 0.0)}


def doubled(latent: Tensor) -> Tensor:
    """Replaces the upscaler, which both sides would share."""
    return nn.functional.interpolate(latent.float(), scale_factor=(1, 2, 2))


def both(one: dict[str, float], two: dict[str, float], steps: int) -> dict[str, Any]:
    return {
        "first": one["step"],
        "second": two["step"],
        "stages": one["step"] * steps + two["step"] * (len(REFINE) - 1),
        "allocated": max(one.get("allocated", 0), two.get("allocated", 0)),
    }


@cache
def official_model(
    layers: int, heads: int, head_dim: int, dtype: str | None = None, device: str | None = None
) -> nn.Module:
    from ltx_core.model.transformer import LTXModelConfigurator, X0Model

    config = {
        "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim, "audio_num_attention_heads": heads,
        "audio_attention_head_dim": head_dim // 2, "audio_cross_attention_dim": heads * head_dim // 2,
        "dropout": 0.0, "attention_bias": True, "num_vector_embeds": None, "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000, "use_linear_projection": False, "only_cross_attention": False,
        "cross_attention_norm": True, "double_self_attention": False, "upcast_attention": False,
        "standardization_norm": "rms_norm", "norm_elementwise_affine": False, "qk_norm": "rms_norm",
        "positional_embedding_type": "rope", "use_audio_video_cross_attention": True, "share_ff": False,
        "av_cross_ada_norm": True, "use_middle_indices_grid": True, "rope_type": "split",
        "frequencies_precision": "float64", "apply_gated_attention": True, "cross_attention_adaln": True,
        "av_ca_timestep_scale_multiplier": 1000, "timestep_scale_multiplier": 1000,
        "caption_proj_before_connector": True, "caption_projection_first_linear": False,
        "caption_projection_second_linear": False, "caption_proj_input_norm": False,
    }  # fmt: skip
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config({"transformer": config})
    return X0Model(randomise(model, dtype, device, renamed)).eval()


@torch.inference_mode()
def official(
    size: dict[str, Any],
    clip: list[int],
    steps: int,
    save: str | None = None,
    measured: Measure = clock,
    early: bool = True,
) -> dict[str, Any]:
    """The same as `ours` with the helpers of ltx-pipelines 1.0.0. save: as in `ours`, with the rules of version 1.2.

    In the early steps the libraries start and choose their algorithms."""
    from a2v.benchmarks import official as peer

    model, whole = official_model(**size), Clip(*clip)
    place, kind = device(size.get("device")), dtype(size.get("dtype"))
    first = halved(whole)
    video_text, audio_text, video_negative, _ = texts(size)
    guided = peer.helpers.multi_modal_guider_denoising_func(
        video_guider=peer.MultiModalGuider(params=peer.guider(size["layers"]), negative_context=video_negative),
        audio_guider=peer.MultiModalGuider(params=peer.MultiModalGuiderParams()),
        v_context=video_text,
        a_context=audio_text,
        transformer=model,
    )
    plain = peer.helpers.simple_denoising_func(video_context=video_text, audio_context=audio_text, transformer=model)
    # The noise is drawn on the CPU, as ours is, so that both sides have the same.
    generator = torch.Generator().manual_seed(1)

    def noiser(state: Any, noise_scale: float = 1.0) -> Any:
        noise = torch.randn(state.latent.shape, generator=generator).to(state.latent)
        share = state.denoise_mask * noise_scale
        return peer.replace(state, latent=(noise * share + state.latent * (1 - share)).to(state.latent.dtype))

    def one_stage(clip: Clip, sigmas: Tensor, function: Any, **start: Any) -> Tensor:
        return peer.helpers.denoise_video_only(
            output_shape=peer.VideoPixelShape(1, clip.frames, clip.height, clip.width, float(clip.fps)),
            conditionings=[],
            noiser=noiser,
            sigmas=sigmas.to(place),
            stepper=peer.EulerDiffusionStep(),
            denoising_loop_fn=lambda sigmas, video, audio, stepper: peer.euler_denoising_loop(
                sigmas, video, audio, stepper, function
            ),
            components=peer.PipelineComponents(kind, place),
            dtype=kind,
            device=place,
            initial_audio_latent=sound(clip.frames).to(place, kind),
            **start,
        ).latent

    sigmas = schedule("none", steps)
    if save:
        with peer.version_1_2():
            latent = one_stage(first, torch.tensor(WHOLE), guided)
        save_file({"latent": latent.float().cpu().contiguous()}, save)
        return {}
    refine = torch.tensor(REFINE)

    def stages(sigmas: Tensor, refine: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        with measured(len(sigmas) - 1) as one:
            latent = one_stage(first, sigmas, guided)
        with measured(len(refine) - 1) as two:
            start = doubled(latent).to(kind)
            one_stage(whole, refine, plain, noise_scale=float(refine[0]), initial_video_latent=start)
        return one, two

    before = stages(sigmas[-2:], refine[-2:]) if early else ()
    one, two = stages(sigmas, refine)
    start = sum(step["step"] for step in before) - one["step"] - two["step"]
    return {**both(one, two, steps), "start": max(start, 0.0)}


@cache
def decoder(channels: int) -> nn.Module:
    """The video VAE with random weights. channels: of its last block, 128 in the published one."""
    from a2v.ltx.weights.configs import video_vae_config
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

    with torch.device("meta"):
        vae = AutoencoderKLLTX2Video(**video_vae_config({"decoder_base_channels": channels}, "a benchmark"))
    vae = randomise(vae, None, None)
    vae.latents_mean.zero_()
    vae.latents_std.fill_(1)
    return vae


@torch.inference_mode()
def decode(size: dict[str, Any], clip: list[int], steps: int, tiled: bool) -> dict[str, Any]:
    """Decodes a clip, in tiles or as one: the seconds of the second of two runs, and the peak above the weights."""
    from a2v.ltx.diffusion.decode import Tiling, decode_video
    from a2v.ltx.grid import CHANNELS, video_shape

    vae, whole = decoder(4 * size["heads"]), Clip(*clip)
    shape = video_shape(whole.frames, whole.height, whole.width)
    latent = torch.randn(1, CHANNELS, *shape, generator=torch.Generator().manual_seed(4))
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    for _ in range(2):  # the first run chooses the convolutions' algorithms
        with clock(1) as found:
            frames = sum(len(part) for part in decode_video(vae, latent, Tiling() if tiled else None))
    if frames != whole.frames:
        raise AssertionError(f"{frames} frames were decoded, not {whole.frames}")
    return {"stages": found["step"], "allocated": max(found.get("allocated", 0) - weights, 0)}


def check(ours: float, official: float, kind: torch.dtype | None = None) -> None:
    """Raises AssertionError if the error of a side against float32 is too large, or ours is above the official one."""
    bound = CLOSE[kind or dtype()]
    if not max(ours, official) < bound or not ours <= max(NEARER * official, CLOSE[torch.float32]):
        raise AssertionError(
            f"the errors of a guided step against float32 are {ours:.3g} (ours) and {official:.3g} (official); below "
            f"{bound:g} and ours no larger is needed"
        )
