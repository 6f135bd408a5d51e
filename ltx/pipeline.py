"""Audio to video: the calls to the other files, in order. `sample` is one pass, and the node calls it too; `run` is the
whole headless job, a part of the model in memory at a time."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion import schedules
from .diffusion.acceleration import EXACT, LEVELS, Acceleration, check_level, full_strength
from .diffusion.conditioning import AudioCondition, Guide, Stream, audio_stream, video_stream
from .diffusion.decode import Tiling, decode_video, to_uint8
from .diffusion.encode import encode_image
from .diffusion.guidance import NONE, Guidance, needed
from .diffusion.samplers import Callback, Denoiser, Latents, Restart, checked, euler, gradient_estimation, res_2s
from .diffusion.sound import decode_audio, encode_audio, encode_mel, log_mel
from .diffusion.transformer import (
    Levels,
    Pass,
    Reuse,
    adopt,
    batch_room,
    compile_blocks,
    modulation,
    rotary,
    velocities,
    working_set,
)
from .diffusion.upscale import upscale
from .errors import FlaggedError, InputError
from .latents import CHANNELS, Noise, unpatchify_audio, unpatchify_video, video_shape
from .media import preprocess
from .media.audio import Track, conditioning_track, load_track, soundtrack
from .media.images import compress, fit, load_image
from .media.probe import VideoFile
from .media.safety import Watch, load_checker
from .media.video import write_video
from .memory import forecast as memory
from .memory.offload import Offload, offload_gemma, offload_transformer
from .plan import Plan, plan
from .prompt.contexts import ContextCache, fingerprint
from .prompt.expand import Expansion, expand
from .prompt.gemma import Gemma, check_gemma, load_gemma
from .prompt.text import TextContext, encode_text
from .request import Request
from .weights import lora
from .weights.checkpoint import Checkpoint, load_checkpoint, load_upscaler

TILING = Tiling()
EULER, RES_2S = SAMPLERS = ("euler", "res_2s")
SAFETY = "LTX_A2V_SAFETY"  # set to "require", nothing is made without a safety checker
RESTART_SEED = 10_000  # what the restart noise's seed adds to the request's
Trace = Callable[[str, Tensor], None]
Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def denoiser(
    model: nn.Module,
    video: Stream,
    audio: Stream,
    positive: TextContext,
    negative: TextContext | None,
    guidance: Guidance,
    audio_guidance: Guidance = NONE,
    on_block: Callable[[], None] | None = None,
    trace: Trace | None = None,
    *,
    guided: Callable[[float], bool] = lambda sigma: True,
    reuse: Reuse | None = None,
    room: float = 0.0,
) -> Denoiser:
    """The transformer as a predictor of x0: the passes that guidance asks for, combined and blended by the masks.

    The streams' tensors say where it runs. Frozen audio is not guided, and its text context is the positive one in
    every pass: what the negative prompt says then concerns the video alone. guided: whether a step at that sigma is
    guided; reuse: the cache of this run, if any; room: free bytes beside the weights, for the passes as one batch.
    """
    device, dtype = video.latent.device, model.proj_in.weight.dtype
    frozen = not audio.mask.any()
    if frozen:
        audio_guidance = NONE
    both = (guidance, audio_guidance)
    runs_uncond, runs_perturbed, runs_isolated = needed(*both)
    if runs_uncond and negative is None:
        raise InputError(
            "negative prompt: missing, and a CFG scale other than 1 needs it; connect one or set CFG to 1."
        )
    adopt(model)
    layers = len(model.transformer_blocks)
    stg_blocks, audio_stg_blocks = (g.blocks(layers) if g.runs_perturbed else () for g in both)
    positions = rotary(model, video.positions, audio.positions, device)
    seen, heard = (c.to(device, dtype) for c in (positive.video, positive.audio))
    passes: dict[str, Pass] = {"cond": Pass(seen, heard)}
    if runs_uncond:
        unheard = negative.audio.to(device, dtype) if audio_guidance.runs_uncond else heard
        passes["uncond"] = Pass(negative.video.to(device, dtype), unheard)
    if runs_perturbed:
        passes["perturbed"] = Pass(seen, heard, stg_blocks, audio_stg_blocks)
    if runs_isolated:
        passes["isolated"] = Pass(seen, heard, isolated=True)
    masks = Latents(video.mask[..., 0], audio.mask[..., 0])
    levels = Levels.of(masks.video), Levels.of(masks.audio)
    batched = len(passes) * working_set(model, masks.video.shape[1] + masks.audio.shape[1]) < room

    def denoise(x: Latents, sigma: Tensor, step: int) -> Latents:
        full = guided(float(sigma))
        sigma = sigma.to(device)
        audio_sigma = sigma * audio.mask.max()
        adaln = modulation(model, levels[0] * sigma, levels[1] * sigma, sigma[None], audio_sigma[None], dtype)
        running = list(passes.items()) if full else [("cond", passes["cond"])]
        entering = Latents(x.video.to(dtype), x.audio.to(dtype))
        results = velocities(
            model,
            entering,
            [p for _, p in running],
            positions,
            adaln,
            audio_read=not frozen,
            batched=batched,
            reuse=reuse if reuse is not None and float(sigma) > reuse.last else None,
            on_block=on_block,
        )
        times = Latents(masks.video * sigma, masks.audio * sigma)
        predictions: dict[str, Latents] = {}
        for number, ((name, _), (v, a)) in enumerate(zip(running, results, strict=True)):
            x0 = Latents(
                x.video - v.float() * times.video[..., None],
                x.audio if a is None else x.audio - a.float() * times.audio[..., None],
            )
            predictions[name] = x0
            if trace is not None:
                for label, value in (
                    ("video_x0", x0.video),
                    ("audio_x0", x0.audio),
                    ("video_timesteps", times.video[..., None]),
                    ("audio_timesteps", times.audio[..., None]),
                    ("video_sigma", sigma[None]),
                    ("audio_sigma", audio_sigma[None]),
                ):
                    trace(f"step{step}/call{number}/{label}", value)
        if not full:
            return Latents(video.blend(predictions["cond"].video), audio.blend(predictions["cond"].audio))
        guide = (
            g.combine(**{name: getattr(x0, stream) for name, x0 in predictions.items()})
            for g, stream in ((guidance, "video"), (audio_guidance, "audio"))
        )
        return Latents(video.blend(next(guide)), audio.blend(next(guide)))

    return denoise


@torch.inference_mode()
def sample(
    model: nn.Module,
    *,
    latent: Tensor,
    sigmas: Tensor,
    positive: TextContext,
    audio: AudioCondition,
    noise: Noise,
    negative: TextContext | None = None,
    guides: tuple[Guide, ...] = (),
    guidance: Guidance = NONE,
    audio_guidance: Guidance = NONE,
    gamma: float = 0.0,
    restart: Restart | None = None,
    sampler: str = EULER,
    acceleration: Acceleration = EXACT,
    room: float | None = None,
    device: torch.device | str | None = None,
    on_step: Callback | None = None,
    on_block: Callable[[], None] | None = None,
    trace: Trace | None = None,
) -> tuple[Tensor, AudioCondition, Noise]:
    """One pass → float32 video latent, the audio for the next pass (frozen), and the noise it goes on with.

    latent: [1, 128, F, H, W]; it gives the size and, below sigma 1, the start. gamma: gradient estimation's, 0 is off.
    restart: fresh noise on the way. sampler: one of SAMPLERS. acceleration: what to leave out of which steps; its
    distilled recipe is the caller's to set up. device: where to compute, by default where the model is; room: bytes
    there for the passes of a step as one batch, by default what the device says. on_step gets each step's x0 as tokens
    (`grid` makes a latent of the video's). Errors: InputError.
    """
    if latent.ndim != 5 or latent.shape[:2] != (1, CHANNELS):
        raise InputError(f"the latent is {list(latent.shape)}; an LTX video latent [1, {CHANNELS}, F, H, W] is needed.")
    sigmas = checked(sigmas)
    if sampler not in SAMPLERS:
        raise InputError(f"sampler: {sampler!r} is not one of {', '.join(SAMPLERS)}.")
    if sampler == RES_2S and (gamma or restart):
        raise InputError(f"sampler: {RES_2S} renews noise by itself; leave out restart and gradient estimation.")
    device = device if device is not None else next(model.parameters()).device
    video = video_stream(latent.float(), guides, audio.fps).to(device)
    sound = audio_stream(audio).to(device)
    seed = noise.seed + RESTART_SEED
    drawn, noise = noise.draw(tuple(video.latent.shape), tuple(sound.latent.shape))
    # A schedule's 1 may be a hair below it in float32; the noise is whole all the same.
    scale = 1.0 if sigmas[0] > 1 - 1e-6 else float(sigmas[0])
    x = Latents(*(s.noised(n.to(device), scale) for s, n in zip((video, sound), drawn, strict=True)))
    if trace is not None:
        trace("sigmas", sigmas)
        trace("positions_video", video.positions)
        trace("positions_audio", sound.positions)
    unguided, last = acceleration.guided_above(sigmas), float(sigmas[-2])
    denoise = denoiser(
        model,
        video,
        sound,
        positive,
        negative,
        guidance,
        audio_guidance,
        on_block,
        trace,
        guided=lambda sigma: sigma > unguided,
        reuse=Reuse(acceleration.reuse, last) if acceleration.reuse else None,
        room=batch_room(torch.device(device)) if room is None else room,
    )
    masks = Latents(video.mask, sound.mask)
    if sampler == RES_2S:
        clean = Latents(video.clean, sound.clean)
        x = res_2s(denoise, x, sigmas, seed, on_step, trace, clean=clean, masks=masks)
    elif gamma:
        x = gradient_estimation(denoise, x, sigmas, gamma, on_step, trace, restart=restart, seed=seed, masks=masks)
    else:
        x = euler(denoise, x, sigmas, on_step, trace, restart=restart, seed=seed, masks=masks)
    if audio.strength < 1:
        audio = replace(audio, latent=unpatchify_audio(x.audio).to(audio.latent.device), strength=1.0)
    return grid(x.video, latent), audio, noise


def grid(tokens: Tensor, like: Tensor) -> Tensor:
    """The grid's part of video tokens, without keyframes → latent of `like`'s shape."""
    f, h, w = like.shape[2:]
    return unpatchify_video(tokens[:, : f * h * w], (f, h, w))


@dataclass(frozen=True)
class Files:
    """Paths of a headless job. loras: pairs of a path and its strength in both passes."""

    checkpoint: Path
    text_encoder: Path
    audio: Path
    output: Path
    upscaler: Path | None = None
    distill_lora: Path | None = None
    camera_lora: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    image: Path | None = None
    end_image: Path | None = None
    safety_checker: Path | None = None
    video_vae: Path | None = None  # these three: where that part is not in the checkpoint
    audio_vae: Path | None = None
    connectors: Path | None = None
    contexts: Path | None = None  # a folder that keeps encoded prompts


@dataclass(frozen=True)
class Result:
    video: VideoFile
    report: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Everything that is known before a model is loaded."""

    files: Files
    request: Request
    track: Track
    images: tuple[tuple[Tensor, str], ...]  # after the H.264 round trip, "first" or "end"
    plan: Plan
    checkpoint: Checkpoint
    first_loras: tuple[tuple[lora.Lora, float], ...]
    second_loras: tuple[tuple[lora.Lora, float], ...]
    notes: tuple[str, ...]


def prepare(files: Files, request: Request) -> Job:
    """Opens every file and settles every number. What is wrong with the input is said here, before models load."""
    notes = list(request.notes)
    if request.enable_safety_checker and files.safety_checker is None:
        if "enable_safety_checker" in request.given or os.environ.get(SAFETY) == "require":
            raise InputError(
                "enable_safety_checker: no classifier was named; give --safety-checker a folder with an image "
                "classifier of transformers, or set it to false."
            )
        notes.append("the safety checker did not run: no classifier was named with --safety-checker")
    track = load_track(files.audio)
    pictures = []
    for path, strength, name in (
        (files.image, request.image_strength, "first"),
        (files.end_image, request.end_image_strength, "end"),
    ):
        if path is not None and strength == 0:
            notes.append(f"the {name} image has strength 0 and counts as absent")
        pictures.append(load_image(path) if path is not None and strength else None)
    sizes = tuple(None if p is None else (p.shape[1], p.shape[0]) for p in pictures)
    planned = plan(request, track, sizes)
    if pictures[1] is not None and planned.frames == 1:
        raise InputError("end image: a video of one frame has no other frame for it; ask for 9 frames or more.")
    if planned.two_passes and files.upscaler is None:
        raise InputError("--upscaler: two passes need it; name the upscaler's file or set use_multiscale to false.")
    if planned.two_passes:
        load_upscaler(files.upscaler)  # maps the file, and says what is wrong with it before the first pass, not after
    if request.camera_lora != "none" and files.camera_lora is None:
        raise InputError(f"camera_lora: {request.camera_lora} needs its file; name it with --camera-lora.")
    checkpoint = load_checkpoint(
        files.checkpoint, video_vae=files.video_vae, audio_vae=files.audio_vae, connectors=files.connectors
    )
    checkpoint.check()
    check_gemma(files.text_encoder)
    both = [(lora.load_lora(path), scale) for path, scale in files.loras]
    if files.camera_lora is not None:
        both.append((lora.load_lora(files.camera_lora), request.camera_lora_scale))
    first, second = list(both), list(both)
    scales = request.distill_lora_first_pass_scale, request.distill_lora_second_pass_scale
    if LEVELS[request.acceleration].distilled:
        scales = (full_strength(checkpoint.path.name, files.distill_lora is not None),) * 2
    if files.distill_lora is not None:
        distilled = lora.load_lora(files.distill_lora)
        first.append((distilled, scales[0]))
        second.append((distilled, scales[1]))
        acting = [first[-1][1], second[-1][1] if planned.two_passes else 0]
        if warning := lora.overdone(checkpoint.path.name, acting):
            notes.append(warning)
    elif not lora.distilled(checkpoint.path.name):
        notes.append("no distilled LoRA given: its scales count as 0 in both passes")
    if second:
        blueprint = checkpoint.blueprint()
        notes += [warning for loaded, _ in second if (warning := lora.match(loaded, blueprint).warning)]
    images = tuple((compress(p), name) for p, name in zip(pictures, ("first", "end"), strict=True) if p is not None)
    notes += planned.notes
    notes += preprocess.warnings(track, planned.frames, planned.fps, levelled=request.preprocess_audio)
    return Job(files, request, track, images, planned, checkpoint, tuple(first), tuple(second), tuple(notes))


@torch.inference_mode()
def run(
    files: Files,
    request: Request,
    *,
    stg_blocks: tuple[int, ...] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = TILING,
    fp8: bool = False,
    compiled: bool = False,
    offload: str = memory.AUTO,
    announce: Callable[[memory.Preflight], None] | None = None,
    trace: Trace | None = None,
    progress: Progress | None = None,
) -> Result:
    """The whole job, from files to a finished file. Errors: InputError, before models load where that can be.

    fp8: transformer and Gemma are stored in float8 and compute in `dtype`. compiled: torch.compile of the transformer's
    block. offload: one of memory.OFFLOAD, for a GPU. announce: is told what each stage takes before anything loads.
    """
    say = progress or (lambda stage, done, total: None)
    note = trace or (lambda name, tensor: None)
    job = prepare(files, request)
    clip, checkpoint = job.plan, job.checkpoint
    guidance = Guidance(
        cfg=request.video_cfg_scale,
        stg=request.video_stg_scale,
        rescale=request.video_rescaling_scale,
        modality=request.video_modality_scale,
        stg_blocks=stg_blocks,
    )
    audio_guidance = Guidance(
        cfg=request.audio_cfg_scale,
        stg=request.audio_stg_scale,
        rescale=request.audio_rescaling_scale,
        modality=request.audio_modality_scale,
        stg_blocks=stg_blocks,
    )
    if LEVELS[request.acceleration].distilled:
        guidance, audio_guidance = NONE, NONE
        sigmas = torch.tensor(schedules.DISTILLED)
    else:
        sigmas = schedules.SCHEDULES[request.scheduler](request.num_inference_steps)
    acting = (guidance,) if request.audio_strength == 1 else (guidance, audio_guidance)
    acceleration = LEVELS[request.acceleration]
    check_level(acceleration, *acting)
    if any(needed(guidance, audio_guidance)):
        guidance.blocks(len(checkpoint.blueprint().transformer_blocks))
    checker = load_checker(files.safety_checker) if request.enable_safety_checker and files.safety_checker else None

    forecast = None
    if announce is not None or torch.device(device).type == "cuda":
        forecast = memory.estimate(
            job,
            sample,
            guidance=guidance,
            audio_guidance=audio_guidance,
            dtype=dtype,
            device=device,
            tiling=tiling,
            offload=offload,
            fp8=fp8,
        )
        tiling = forecast.tiling
        if announce is not None:
            announce(forecast)
    away = {name for name in (memory.GEMMA, memory.TRANSFORMER) if forecast is not None and forecast.offloaded(name)}

    prompt, positive, negative, notes = encode_prompts(job, dtype, device, note, say, fp8, memory.GEMMA in away)
    audio = encode_sound(job, dtype, device, trace)
    first_guides, second_guides = encode_images(job, dtype, device, note)

    model = checkpoint.transformer(dtype, "cpu" if memory.TRANSFORMER in away else device, fp8, device)
    merger = lora.Merger(model, checkpoint.transformer_weight, device)  # blocks that wait on the host, too
    merger.set(job.first_loras)
    visiting = offload_transformer(model, device) if memory.TRANSFORMER in away else None
    if compiled:
        compile_blocks(model)
    common: dict[str, Any] = {"positive": positive, "gamma": request.gradient_estimation_gamma, "device": device}
    latent = torch.zeros(1, CHANNELS, *video_shape(clip.frames, *clip.first_size[::-1]))
    stage = "first pass" if clip.two_passes else "sample"
    latent, audio, noise = sample(
        model,
        latent=latent,
        audio=audio,
        sigmas=sigmas,
        negative=negative,
        guides=first_guides,
        guidance=guidance,
        audio_guidance=audio_guidance,
        acceleration=acceleration,
        restart=Restart() if request.use_restart_sampling else None,
        noise=Noise(request.seed),
        on_step=lambda done, total, x0: say(stage, done, total),
        trace=_under("s1", trace),
        **common,
    )
    if clip.two_passes:
        upsampler, vae = load_upscaler(files.upscaler, dtype, device), checkpoint.video_vae(dtype, device)
        latent = upscale(upsampler, vae, latent, trace)
        del upsampler, vae
        if visiting is not None:
            visiting.rest()
        merger.set(job.second_loras)
        latent, audio, noise = sample(
            model,
            latent=latent,
            audio=audio,
            sigmas=torch.tensor(schedules.REFINE),
            guides=second_guides,
            noise=noise,
            on_step=lambda done, total, x0: say("second pass", done, total),
            trace=_under("s2", trace),
            **common,
        )
    if visiting is not None:
        visiting.release()
    del model, merger, visiting
    note("final/video_latent", latent)

    if request.audio_strength == 1:
        track = soundtrack(job.track, clip.frames, clip.fps)
    else:
        note("final/audio_latent", audio.latent)
        track = decode_audio(
            checkpoint.audio_vae(dtype, device),
            checkpoint.vocoder(torch.float32, device),  # small, and bfloat16 is heard
            audio.latent,
            clip.frames,
            clip.fps,
        )
    vae = checkpoint.video_vae(dtype, device)
    retried: list[str] = []  # the last one says it all
    decoded = decode_video(
        vae, latent, tiling, lambda done, total: say("decode", done, total), on_retry=lambda said: retried.append(said)
    )
    frames = _frames(decoded, trace)
    report = describe(job, prompt, guidance, audio_guidance, len(sigmas) - 1, notes)
    video = write_video(
        files.output,
        frames if checker is None else _refuse(Watch(checker, clip.frames), frames),
        clip.fps,
        track,
        format=request.video_output_type,
        quality=request.video_quality,
        write_mode=request.video_write_mode,
        metadata={"comment": json.dumps(report, ensure_ascii=False)},
    )
    report["notes"] += retried[-1:]
    return Result(video, report)


def encode_prompts(
    job: Job,
    dtype: torch.dtype | None,
    device: torch.device | str,
    note: Trace,
    say: Progress,
    fp8: bool = False,
    offload: bool = False,
) -> tuple[str, TextContext, TextContext, list[str]]:
    """The prompt as used, expanded if asked; its context and the negative one's; what the report says of them.

    Gemma and the connectors leave memory after it. What the job's folder of contexts has is not made again, and Gemma
    not loaded where it has everything.
    """
    request, files = job.request, job.files
    prompt, notes = request.prompt, []
    visiting: list[Offload] = []

    @functools.cache
    def gemma() -> Gemma:
        loaded = load_gemma(files.text_encoder, dtype, "cpu" if offload else device, **({"fp8": device} if fp8 else {}))
        if offload:
            visiting.append(offload_gemma(loaded.model, device))
        return loaded

    @functools.cache
    def connectors() -> nn.Module:
        return job.checkpoint.connectors(dtype, device)

    cache = ContextCache(files.contexts) if files.contexts is not None else None
    how = {"device": device, "dtype": f"{dtype} fp8" if fp8 else dtype}
    if request.enable_prompt_expansion:
        image = next((picture for picture, name in job.images if name == "first"), None)

        def on_token(done: int, total: int, text: str) -> None:
            say("expand prompt", done, total)

        def write() -> Expansion:
            return expand(gemma(), prompt, seed=request.seed, image=image, on_token=on_token)

        if cache is None:
            expansion = write()
        else:
            expansion = cache.expansion(prompt, request.seed, image, fingerprint(files.text_encoder, **how), write)
        prompt = expansion.prompt
        notes += [expansion.reason] if expansion.reason else []
    say("encode text", 0, 2)
    contexts = []
    for number, (name, text) in enumerate((("prompt", prompt), ("negative prompt", request.negative_prompt))):

        def encode(text: str = text, number: int = number) -> TextContext:
            return encode_text(gemma(), connectors(), text, trace=_under(f"prompt/{number}", note))

        if cache is None:
            context = encode()
        else:
            own = [files.text_encoder, files.checkpoint, *([files.connectors] if files.connectors else [])]
            context = cache.context(text, fingerprint(*own, **how), encode, device)
        note(f"prompt/{number}/video_enc", context.video)
        note(f"prompt/{number}/audio_enc", context.audio)
        contexts.append(context)
        if context.truncated:
            notes.append(f"the {name} is longer than 1024 tokens and was cut")
        say("encode text", number + 1, 2)
    for away in visiting:
        away.release()
    return prompt, contexts[0], contexts[1], notes


def encode_sound(
    job: Job, dtype: torch.dtype | None, device: torch.device | str, trace: Trace | None
) -> AudioCondition:
    """The track, levelled if asked, as the audio stream's condition. The track that is returned stays as it is."""
    clip, track = job.plan, job.track
    if job.request.preprocess_audio:
        track = preprocess.preprocess(soundtrack(track, clip.frames, clip.fps))
    vae = job.checkpoint.audio_vae(dtype, device)
    if trace is not None:
        heard = conditioning_track(track, clip.frames, clip.fps)
        mel = log_mel(heard)
        trace("audio/waveform", heard.waveform[None])
        trace("audio/mel", mel)
        trace("audio/latent", encode_mel(vae, mel))  # before the trim, as the official code has it
    latent = encode_audio(vae, track, clip.frames, clip.fps)
    return AudioCondition(latent, clip.frames, clip.fps, job.request.audio_strength)


def encode_images(
    job: Job, dtype: torch.dtype | None, device: torch.device | str, note: Trace
) -> tuple[tuple[Guide, ...], tuple[Guide, ...]]:
    """The images as guides of the first and of the second pass, each encoded at its pass's size."""
    clip = job.plan
    if not job.images:
        return (), ()
    vae = job.checkpoint.video_vae(dtype, device)
    sizes = [clip.first_size, (clip.width, clip.height)][: 2 if clip.two_passes else 1]
    guides: list[tuple[Guide, ...]] = []
    for size in sizes:
        encoded = []
        for picture, name in job.images:
            pixels = fit(picture, *size)
            latent = encode_image(vae, pixels)
            number = len(guides) * len(job.images) + len(encoded)
            note(f"cond/{number}/pixels", pixels)
            note(f"cond/{number}/latent", latent)
            first = name == "first"
            strength = job.request.image_strength if first else job.request.end_image_strength
            encoded.append(Guide(latent, 0 if first else clip.frames - 1, strength))
        guides.append(tuple(encoded))
    return guides[0], guides[1] if clip.two_passes else ()


def describe(
    job: Job, prompt: str, guidance: Guidance, audio_guidance: Guidance, steps: int, more: list[str]
) -> dict[str, Any]:
    """What was asked and what was used. File names only: a report travels in the file it is about."""
    asked = asdict(replace(job.request, given=frozenset(), notes=()))
    del asked["given"], asked["notes"]
    acting = [guidance] if job.request.audio_strength == 1 else [guidance, audio_guidance]
    return {
        "asked": asked,
        "used": {
            "width": job.plan.width,
            "height": job.plan.height,
            "frames": job.plan.frames,
            "fps": str(job.plan.fps),
            "seed": job.request.seed,
            "prompt": prompt,
            "steps": steps,
            "passes_per_step": 1 + sum(needed(*acting)),
            "acceleration": job.request.acceleration,
            "model_version": job.checkpoint.version,
            "loras": [
                {"file": loaded.path.name, "layers": len(loaded.targets), "first_pass": first, "second_pass": second}
                for (loaded, first), (_, second) in zip(job.first_loras, job.second_loras, strict=True)
            ],
        },
        "notes": [*job.notes, *more],
    }


def _refuse(watch: Watch, frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """The frames, until the safety checker flags one."""
    for chunk in watch(frames):
        if watch.flagged:
            raise FlaggedError(
                "the safety checker flagged the result, and nothing was written; change the prompt or the images, or "
                "set enable_safety_checker to false."
            )
        yield chunk


def _under(prefix: str, trace: Trace | None) -> Trace | None:
    return None if trace is None else lambda name, tensor: trace(f"{prefix}/{name}", tensor)


def _frames(chunks: Iterator[Tensor], trace: Trace | None) -> Iterator[Tensor]:
    """Decoded floats → uint8 as the file takes them; the trace gets all of them at the end."""
    kept = []
    for chunk in chunks:
        frames = to_uint8(chunk)
        if trace is not None:
            kept.append(frames)
        yield frames
    if trace is not None:
        trace("final/frames_u8", torch.cat(kept))
