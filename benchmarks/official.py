"""The official side: ltx-pipelines 1.0.0 on a CPU, with the same files and request as ours.py.

Some changes are needed to run it here. torch.cuda.synchronize and empty_cache do nothing. Its pipeline computes in
float32 instead of bfloat16, and weights that its LoRA merging leaves in bfloat16 are converted, too. It gets the
prompts' contexts, because its Gemma loader needs an older transformers. For comparing numbers, `version_1_2` adds the
rules of its later version, which this pack follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

if not torch.cuda.is_available():
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None

from a2v.benchmarks.work import GUIDANCE, WHOLE, Clip, Counter, contexts, sound, stg_block
from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_core.model.transformer import transformer_args
from ltx_core.types import VideoPixelShape
from ltx_pipelines import a2vid_two_stage
from ltx_pipelines.utils import ModelLedger, helpers, media_io
from ltx_pipelines.utils.samplers import euler_denoising_loop
from ltx_pipelines.utils.types import PipelineComponents
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CPU = torch.device("cpu")


class _Float32:
    """A stand-in for torch in its pipeline module, in which bfloat16 is float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def version_1_2() -> Iterator[None]:
    """Inside `with`, scale and shift between the streams use each token's own timestep, and a frozen stream has sigma
    0."""
    preprocessor = transformer_args.MultiModalTransformerArgsPreprocessor
    prepare, modality = preprocessor.prepare, helpers.modality_from_latent_state

    def own_timestep(self: Any, given: Any, cross_modality: Any = None) -> Any:
        scale_shift, _ = self._prepare_cross_attention_timestep(
            timestep=given.timesteps,
            timestep_scale_multiplier=self.simple_preprocessor.timestep_scale_multiplier,
            batch_size=1,
            hidden_dtype=given.latent.dtype,
        )
        return replace(prepare(self, given, cross_modality), cross_scale_shift_timestep=scale_shift)

    def frozen(state: Any, context: Tensor, sigma: Tensor, enabled: bool = True) -> Any:
        made = modality(state, context, sigma, enabled)
        return made if state.denoise_mask.any() else replace(made, sigma=torch.zeros_like(sigma))

    with patch.object(preprocessor, "prepare", own_timestep), patch.object(helpers, modality.__name__, frozen):
        yield


def rules(later: bool) -> Any:
    return version_1_2() if later else nullcontext()


@cache
def transformer(checkpoint: str) -> nn.Module:
    return ModelLedger(torch.float32, CPU, checkpoint).transformer()


def load(checkpoint: str) -> None:
    transformer(checkpoint)


def guider(layers: int) -> MultiModalGuiderParams:
    return MultiModalGuiderParams(stg_blocks=[stg_block(layers)], **GUIDANCE)


@torch.inference_mode()
def step(
    checkpoint: str,
    clip: list[int],
    steps: int,
    save: str | None = None,
    count: bool = False,
    later: bool = False,
) -> dict[str, Any]:
    """The same as ours.step. later: use the rules of version 1.2."""
    model, size = transformer(checkpoint), Clip(*clip)
    inner = model.velocity_model
    video_text, audio_text, video_negative, _ = contexts(inner.inner_dim, inner.audio_inner_dim)
    sigmas = torch.tensor(WHOLE) if save else LTX2Scheduler().execute(steps=15)[: steps + 1]
    guided = helpers.multi_modal_guider_denoising_func(
        video_guider=MultiModalGuider(params=guider(len(inner.transformer_blocks)), negative_context=video_negative),
        audio_guider=MultiModalGuider(params=MultiModalGuiderParams()),
        v_context=video_text,
        a_context=audio_text,
        transformer=model,
    )
    with rules(later), Counter(inner.transformer_blocks, enabled=count) as counter:
        start = time.perf_counter()
        state = helpers.denoise_video_only(
            output_shape=VideoPixelShape(1, size.frames, size.height, size.width, float(size.fps)),
            conditionings=[],
            noiser=GaussianNoiser(torch.Generator().manual_seed(1)),
            sigmas=sigmas,
            stepper=EulerDiffusionStep(),
            denoising_loop_fn=lambda sigmas, video, audio, stepper: euler_denoising_loop(
                sigmas, video, audio, stepper, guided
            ),
            components=PipelineComponents(torch.float32, CPU),
            dtype=torch.float32,
            device=CPU,
            initial_audio_latent=sound(size.frames),
        )
        seconds = time.perf_counter() - start
    if save:
        save_file({"latent": state.latent.contiguous()}, save)
    return {"step": seconds / steps, "runs": counter.runs / steps, "finite": bool(state.latent.isfinite().all())}


@torch.inference_mode()
def whole(
    files: dict[str, str],
    clip: list[int],
    steps: int,
    texts: str,
    layers: int,
    lora: float = 1.0,
    save: str | None = None,
    later: bool = False,
) -> dict[str, Any]:
    """Runs A2VidPipelineTwoStage and its file writer. texts: a file with the contexts; lora: strength of the distilled
    LoRA in the second stage."""
    size, text, kept = Clip(*clip), load_file(texts), {}
    handed_over = [
        SimpleNamespace(video_encoding=text[f"prompt/{i}/video_enc"], audio_encoding=text[f"prompt/{i}/audio_enc"])
        for i in range(2)
    ]
    decode, build = a2vid_two_stage.vae_decode_video, ModelLedger.transformer

    def decoding(latent: Tensor, *rest: Any) -> Any:
        kept["latent"] = latent.contiguous()
        return decode(latent, *rest)

    with (
        rules(later),
        patch.object(a2vid_two_stage, "torch", _Float32()),
        patch.object(a2vid_two_stage, "encode_prompts", lambda *_, **__: handed_over),
        patch.object(a2vid_two_stage, "vae_decode_video", decoding),
        patch.object(ModelLedger, "transformer", lambda ledger: build(ledger).float()),
    ):
        start = time.perf_counter()
        pipeline = a2vid_two_stage.A2VidPipelineTwoStage(
            checkpoint_path=files["checkpoint"],
            distilled_lora=[LoraPathStrengthAndSDOps(files["distill_lora"], lora, LTXV_LORA_COMFY_RENAMING_MAP)],
            spatial_upsampler_path=files["upscaler"],
            gemma_root=None,
            loras=(),
            device=CPU,
        )
        tiling = a2vid_two_stage.TilingConfig.default()
        frames, track = pipeline(
            prompt="",
            negative_prompt="",
            seed=1,
            height=size.height,
            width=size.width,
            num_frames=size.frames,
            frame_rate=float(size.fps),
            num_inference_steps=steps,
            video_guider_params=guider(layers),
            images=[],
            audio_path=files["audio"],
            audio_max_duration=size.frames / size.fps,
            tiling_config=tiling,
        )
        chunks = a2vid_two_stage.get_video_chunks_number(size.frames, tiling)
        media_io.encode_video(frames, size.fps, track, files["output"], chunks)
        seconds = time.perf_counter() - start
    if save:
        save_file(kept, save)
    with media_io.av.open(files["output"]) as container:
        stream = container.streams.video[0]
        return {"run": seconds, "frames": stream.frames, "width": stream.width, "height": stream.height}
