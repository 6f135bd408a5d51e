"""Nodes for sampling: the schedule, the steering, and the sampler of one stage. A graph uses the sampler twice."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.acceleration import full_strength
from ..ltx.diffusion.acceleration import level as acceleration
from ..ltx.diffusion.conditioning import REFERENCE_HEARD, AudioCondition, Conditions, Guide, TextContext
from ..ltx.diffusion.guidance import NONE, Guidance
from ..ltx.diffusion.sample_windows import WindowInputs, keep_nothing, sample_windows
from ..ltx.diffusion.samplers import Restart
from ..ltx.diffusion.schedules import REFINE, SCHEDULES
from ..ltx.diffusion.speakers import heard_by
from ..ltx.diffusion.steering import EULER, INERT, SAMPLERS, Steering, schedule_under
from ..ltx.edits import MOST_IDENTITY
from ..ltx.errors import InputError
from ..ltx.latents import NoiseSource, pixel_frames, pixel_size
from ..ltx.models import is_distilled
from ..ltx.nag import RANGES, Nag
from ..ltx.request import ACCELERATIONS
from . import activations, files, memory
from .fetching import blocks_stay
from .film import CUTS, HERE, KEPT, MADE, SOURCE, FilmSound, FilmWindows, References
from .parts import join
from .progress import Progress, StageProgress, reported
from .taking.latent import MASK, mask_of, start_of
from .taking.noise import Generated, NextNoise, to_streams
from .taking.sigmas import to_sigmas
from .types import CATEGORY, AudioIO, GuidanceIO, GuidesIO, ModelIO, ReferencesIO, RestartIO, TextIO
from .widgets import aliases, widget

SAMPLING = f"{CATEGORY}/Sampling"
AUTO = "auto"
DIGITS = 9  # of a block's number; Python reads no number of thousands of them


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VScheduler",
            display_name="LTX A2V Scheduler",
            category=SAMPLING,
            description="Sets how the noise falls. The second stage always has its own three steps.",
            inputs=[widget("scheduler"), widget("num_inference_steps", "steps", step=1)],
            outputs=[
                io.Sigmas.Output(
                    "first_pass", display_name="first stage sigmas", tooltip="From 1 to 0 in the given steps."
                ),
                io.Sigmas.Output(
                    "second_pass", display_name="second stage sigmas", tooltip="From 0.909 to 0 in three steps."
                ),
            ],
        )

    @classmethod
    def execute(cls, scheduler: str, steps: int) -> io.NodeOutput:
        schedule = SCHEDULES[files.choice("scheduler", scheduler, tuple(SCHEDULES))]
        return io.NodeOutput(schedule(steps), torch.tensor(REFINE))


def _blocks_input() -> io.Input:
    return io.String.Input(
        "stg_blocks",
        default=AUTO,
        tooltip="The transformer blocks that STG perturbs, for instance 28 or 27, 28. auto: block 28 of 48, in "
        "proportion for another depth.",
    )


class PictureGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VGuidance",
            display_name="LTX A2V Guidance",
            category=SAMPLING,
            description="Sets how the first stage is guided. Each scale that is not neutral costs one more pass of the "
            "transformer in every step; without guidance a step takes one pass. Its scales are CFG, STG "
            "(perturbed attention), rescale and modality. Raise modality if the lips do not move.",
            **aliases("cfg", "stg", "guider"),
            inputs=[
                widget("video_cfg_scale", "cfg", step=0.1),
                widget("video_stg_scale", "stg", step=0.1),
                widget("video_rescaling_scale", "rescale"),
                widget("video_modality_scale", "modality", step=0.1),
                _blocks_input(),
            ],
            outputs=[GuidanceIO.Output("scales", display_name="guidance", tooltip="For the first sampler.")],
        )

    @classmethod
    def execute(cls, cfg: float, stg: float, rescale: float, modality: float, stg_blocks: str) -> io.NodeOutput:
        return io.NodeOutput(Guidance(cfg, stg, rescale, modality, _blocks(stg_blocks)))


class AudioGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VAudioGuidance",
            display_name="LTX A2V Audio Guidance",
            category=SAMPLING,
            description="Sets how the sound is guided while the first stage renews it. It acts only at an audio "
            "strength below 1; at 1 the track is kept, and this node has no effect.",
            inputs=[
                widget(
                    "audio_cfg_scale",
                    "cfg",
                    step=0.1,
                    tooltip="How strongly the sound follows the prompt. 1 leaves that pass out.",
                ),
                widget(
                    "audio_stg_scale",
                    "stg",
                    step=0.1,
                    tooltip="Raise it to 1 if the sound is blurred or drones. 0 leaves that pass out.",
                ),
                widget(
                    "audio_rescaling_scale",
                    "rescale",
                    tooltip="A higher value tames a sound that is harsh or too loud.",
                ),
                widget(
                    "audio_modality_scale",
                    "modality",
                    step=0.1,
                    tooltip="How strongly the sound follows the picture. 1 leaves that pass out.",
                ),
                _blocks_input(),
                io.Float.Input(
                    "identity",
                    default=NONE.identity,
                    min=0.0,
                    max=MOST_IDENTITY,
                    step=0.1,
                    optional=True,
                    tooltip="How strongly the voice is that of Reference Sound: 3 for ID-LoRA. 0 leaves that pass out.",
                ),
            ],
            outputs=[GuidanceIO.Output("scales", display_name="audio guidance", tooltip="For the first sampler.")],
        )

    @classmethod
    def execute(
        cls,
        cfg: float,
        stg: float,
        rescale: float,
        modality: float,
        stg_blocks: str,
        identity: float = NONE.identity,
    ) -> io.NodeOutput:
        return io.NodeOutput(Guidance(cfg, stg, rescale, modality, _blocks(stg_blocks), identity))


class Accelerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VAcceleration",
            display_name="LTX A2V Acceleration",
            category=SAMPLING,
            description="Trades exactness for speed, in one place: it takes the models, the schedule and the guidance "
            "and gives them to the samplers. none changes nothing; the report says what a level does.",
            **aliases("speed", "faster", "teacache", "torch compile"),
            inputs=[
                widget(
                    "acceleration",
                    "level",
                    tooltip="none: exact. regular: the last 40 % of the steps run without guidance. high: as regular, "
                    "and a step reuses the result of the transformer's blocks if little changes. full: the distilled "
                    "recipe, 8 steps without guidance, which needs the distilled LoRA or a distilled checkpoint.",
                ),
                io.Boolean.Input(
                    "torch_compile",
                    default=False,
                    tooltip="Compiles the transformer's blocks with torch.compile: the first step takes a minute or "
                    "two. Where the pack's Triton kernels run, it gains nothing. It needs a compiler (Triton on a "
                    "GPU). The result is not the same bit for bit.",
                ),
                ModelIO.Input("first_model", tooltip="The first stage's model, from Distilled LoRA or Load Model."),
                ModelIO.Input(
                    "second_model", tooltip="The second stage's model. With one stage, connect the first model again."
                ),
                io.Sigmas.Input("schedule", tooltip="The first stage's sigmas, from Scheduler."),
                GuidanceIO.Input("scales", optional=True, tooltip="The first stage's guidance."),
            ],
            outputs=[
                ModelIO.Output("first_pass", display_name="first stage model", tooltip="For the first sampler."),
                ModelIO.Output("second_pass", display_name="second stage model", tooltip="For the second sampler."),
                io.Sigmas.Output("sigmas", display_name="first stage sigmas", tooltip="For the first sampler."),
                GuidanceIO.Output("guidance", display_name="guidance", tooltip="For the first sampler."),
                io.String.Output("report", display_name="report", tooltip="Says what this level does."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        level: str,
        torch_compile: bool,
        first_model: memory.Model,
        second_model: memory.Model,
        schedule: Tensor,
        scales: Guidance | None = None,
    ) -> io.NodeOutput:
        chosen = acceleration(files.choice("acceleration", level, ACCELERATIONS), first_model.version)
        models = [replace(model, compiled=torch_compile) for model in (first_model, second_model)]
        schedule = schedule_under(chosen, to_sigmas(schedule))
        if chosen.distilled:
            models = [_distilled(model) for model in models]
        models[0] = replace(models[0], acceleration=chosen)
        steps = len(schedule) - 1
        guided = math.ceil(chosen.guided * steps)
        notes = [f"acceleration {level}"]
        if chosen.distilled:
            notes.append(f"{steps} distilled steps without guidance")
        if chosen.guided < 1:
            notes.append(f"{guided} of {steps} steps guided")
        if chosen.reuse:
            notes.append(f"blocks reused if the first one changes by less than {chosen.reuse:g}")
        return reported(cls, *models, schedule, scales or NONE, text="; ".join(notes))


def _distilled(model: memory.Model) -> memory.Model:
    """The model for the distilled recipe: its distilled LoRA has strength 1, or 0 on a distilled checkpoint."""
    distilled = [is_distilled(fit.lora.path.name) for fit, _ in model.loras]
    strength = full_strength(model.checkpoint, any(distilled))
    loras = zip(model.loras, distilled, strict=True)
    return model.with_loras(
        tuple((fit, strength if is_distilled_lora else old) for (fit, old), is_distilled_lora in loras)
    )


class NegativeAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        usual = Nag()
        ranges = {name: {"min": low, "max": high} for name, (low, high) in RANGES.items()}
        return io.Schema(
            node_id="LTXA2VNag",
            display_name="LTX A2V NAG",
            category=SAMPLING,
            description="Makes the negative prompt act without CFG: in the second stage, and with distilled models, "
            "whose steps have one pass. In each block, the attention to the prompt is led away from that to the "
            "negative prompt (normalized attention guidance). A step takes a little longer, not twice the time. "
            "Connect the negative prompt to the sampler, too.",
            **aliases("negative prompt", "normalized attention guidance", "distilled", "cfg"),
            inputs=[
                ModelIO.Input("model", tooltip="From Acceleration, Load Model or a LoRA."),
                io.Float.Input(
                    "scale",
                    default=usual.scale,
                    **ranges["scale"],
                    step=0.5,
                    tooltip="How far it is led away. 1 is neutral; lower it if colours or faces become hard.",
                ),
                io.Float.Input(
                    "alpha",
                    default=usual.alpha,
                    **ranges["alpha"],
                    step=0.05,
                    tooltip="The share of the led result; the rest is the prompt alone. 0 is neutral.",
                ),
                io.Float.Input(
                    "tau",
                    default=usual.tau,
                    **ranges["tau"],
                    step=0.1,
                    tooltip="The most by which a token may grow. A lower value keeps more of the prompt alone.",
                ),
            ],
            outputs=[ModelIO.Output("led", display_name="model", tooltip="For a sampler.")],
        )

    @classmethod
    def execute(cls, model: memory.Model, scale: float, alpha: float, tau: float) -> io.NodeOutput:
        return io.NodeOutput(replace(model, nag=Nag(scale, alpha, tau)))


class RestartSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        usual = Restart()
        level = {"min": 0.0, "max": 1.0, "step": 0.05}
        return io.Schema(
            node_id="LTXA2VRestart",
            display_name="LTX A2V Restart Sampling",
            category=SAMPLING,
            description="Adds fresh noise while sampling, so that later steps can correct mistakes of earlier ones. "
            "There are two kinds: a little noise after each step, which costs no time, and restarts, which go back and "
            "repeat a part of the steps.",
            inputs=[
                io.Float.Input(
                    "noise",
                    default=usual.share,
                    **level,
                    tooltip="This share of the remaining noise is drawn anew after each step. 0.2 is usual: it gives "
                    "livelier motion and fewer frozen faces. 0 leaves it out; above 0.5 details flicker.",
                ),
                io.Int.Input(
                    "restarts",
                    default=usual.times,
                    min=0,
                    max=20,
                    tooltip="Number of restarts (Xu et al. 2023): each goes back from sigma_min to sigma_max and down "
                    "again. Try 1 or 2, with noise at 0, if hands, crowds or other difficult motion are wrong. Each "
                    "restart repeats the steps in between.",
                ),
                io.Float.Input(
                    "sigma_min",
                    default=usual.sigma_min,
                    **level,
                    tooltip="A restart begins at this sigma. A lower value also reworks details. It acts if restarts "
                    "is not 0.",
                ),
                io.Float.Input(
                    "sigma_max",
                    default=usual.sigma_max,
                    **level,
                    tooltip="A restart goes back to this sigma. A higher value changes more of the motion. It acts if "
                    "restarts is not 0.",
                ),
            ],
            outputs=[RestartIO.Output("renewal", display_name="restart", tooltip="For the first sampler.")],
        )

    @classmethod
    def execute(cls, noise: float, restarts: int, sigma_min: float, sigma_max: float) -> io.NodeOutput:
        return io.NodeOutput(Restart(noise, restarts, sigma_min, sigma_max))


def _blocks(text: str) -> tuple[int, ...]:
    """ "28, 29" → (28, 29). "auto" or an empty text → (), the model's default. Raises InputError for any other text."""
    parts = text.replace(",", " ").split()
    if parts in ([], [AUTO]):
        return ()
    if not all(part.isdecimal() and len(part) <= DIGITS for part in parts):
        raise InputError(f"stg_blocks: {text!r} is not {AUTO} or block numbers like 28, 29.")
    return tuple(int(part) for part in parts)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSampler",
            # The frontend of 0.3.75 searches only names, so the name contains words that people search for.
            display_name="LTX A2V Sampler (audio to video, lip sync)",
            category=SAMPLING,
            description="Samples one stage: from noise to a video latent that moves with the audio. Use it twice: "
            "first at half the size with guidance, then at full size without guidance, from the upscaled latent and "
            "the first sampler's noise.",
            **aliases(
                "lip sync",
                "talking head",
                "avatar",
                "speech",
                "singing",
                "dance",
                "music video",
                "audio to video",
                "a2v",
            ),
            inputs=[
                ModelIO.Input("model", tooltip="From Load Model or a LoRA."),
                io.Noise.Input(
                    "noise",
                    tooltip="First stage: RandomNoise. Second stage: next noise of the first sampler. Disable "
                    "Noise adds none, to continue a latent that was sampled with the first part of the sigmas.",
                ),
                io.Sigmas.Input(
                    "sigmas", tooltip="From Scheduler, or any schedule that falls from at most 1, or a part of one."
                ),
                TextIO.Input("positive", tooltip="The positive prompt: what the video shows."),
                AudioIO.Input(
                    "audio", tooltip="First stage: Audio Conditioning. Second stage: next audio of the first sampler."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="First stage: the empty latent. Second stage: the upscaled one. What a noise mask marks "
                    "with 0 is kept.",
                ),
                TextIO.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt: what the video must not show. It is needed if cfg is not 1, and by "
                    "NAG.",
                ),
                GuidanceIO.Input("guidance", optional=True, tooltip="From Guidance. Without it a step takes one pass."),
                GuidesIO.Input("guides", optional=True, tooltip="Images, encoded at this stage's size."),
                GuidanceIO.Input(
                    "audio_guidance", optional=True, tooltip="From Audio Guidance, for an audio strength below 1."
                ),
                RestartIO.Input("restart", optional=True, tooltip="From Restart Sampling, for the first stage."),
                io.Combo.Input(
                    "sampler",
                    options=list(SAMPLERS),
                    default=EULER,
                    tooltip="euler is the endpoint's sampler. res_2s, from the official HQ pipeline, gives finer "
                    "detail in few steps. It makes two predictions per step and takes twice the time; use it without "
                    "restart and gamma. Strengths below 1 act far more strongly with it. euler_ancestral renews noise "
                    "in each step; acceleration full takes it for LTX-2.5 by itself.",
                ),
                widget("gradient_estimation_gamma", step=0.1, display_name="gamma (0 = Euler)"),
                ReferencesIO.Input("references", optional=True, tooltip="From Reference, made for this stage."),
            ],
            outputs=[
                io.Latent.Output("denoised", display_name="latent", tooltip="For Latent Upscale or Decode."),
                io.Noise.Output("next_noise", display_name="next noise", tooltip="For the second sampler."),
                AudioIO.Output(
                    "next_audio",
                    display_name="next audio",
                    tooltip="The sound after this stage; a later stage keeps it. For the second sampler and Decode "
                    "Audio.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Gives seed and steps, and inputs without effect."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: memory.Model,
        noise: Any,
        sigmas: Tensor,
        positive: TextContext,
        audio: AudioCondition | FilmSound,
        latent: dict[str, Any],
        negative: TextContext | None = None,
        guidance: Guidance | None = None,
        guides: tuple[Guide, ...] | None = (),
        audio_guidance: Guidance | None = None,
        restart: Restart | None = None,
        sampler: str = EULER,
        gradient_estimation_gamma: float = 0.0,
        references: References | None = None,
    ) -> io.NodeOutput:
        files.choice("sampler", sampler, SAMPLERS)
        steering = Steering(
            to_sigmas(sigmas),
            guidance or NONE,
            audio_guidance or NONE,
            model.acceleration,
            restart,
            gradient_estimation_gamma,
            sampler,
            model.nag,
        )
        layers = len(model.module.transformer_blocks)
        film = FilmSound.of(audio)
        samples, mask = start_of(latent), mask_of(latent)
        still = mask is not None and not mask.any()
        if not film.cut.is_elsewhere:
            steering.check(film.frozen, negative is not None, layers, still, film.referred)
        _check_references(model, references, film)
        left = _left(steering, film)
        progress = Progress(cls.hidden.unique_id)
        if pixel_frames(samples) != film.frames:
            raise InputError(
                f"latent: it has {pixel_frames(samples)} frames, but the audio was encoded for {film.frames}; "
                "give both the same number of frames."
            )
        sources = to_streams(noise, latent, film.cut)
        source, kept = sources[0], FilmWindows()
        conditions = Conditions(positive, film.sounds[0], negative, guides or (), mask, **latent.get(SOURCE, {}))
        parts = film.parts(isinstance(source, Generated), references or ())
        (denoised, sounds, streams), placing = _sample(
            model, samples, film, parts, conditions, steering, sources, kept, progress
        )
        passes = steering.passes(film.frozen, still, film.referred)
        steps = f"seed {source.seed}, {steering.steps} steps of {steering.sampler}, {passes} passes each"
        notes = [f"{steps}, with LTX-{model.version}", *placing]
        if steering.nag is not None:
            notes.append(f"NAG leads away from the negative prompt, at scale {steering.nag.scale:g}")
        if steering.sampler != sampler and (restart or gradient_estimation_gamma):
            notes.append(INERT)
        if isinstance(source, Generated):
            notes.append(source.note)
        if mask is not None:
            notes.append("the latent's noise mask keeps a part of it")
        if count := max(map(len, references or ()), default=0):
            notes.append(f"the model looks at {count} reference{'s' if count > 1 else ''}")
        notes += [REFERENCE_HEARD] if film.referred else []
        notes += [*heard_by(len(film.sounds[0].speakers)), *film.notes(), *kept.notes()]
        if left:
            notes.append(f"noise of sigma {left:g} is left: Disable Noise and the rest of the sigmas continue it")
        if audio_guidance is not None and audio.frozen:
            notes.append("the audio guidance did nothing, because the audio is kept (audio strength 1)")
        elif audio_guidance is not None and audio_guidance.identity and not (film.referred or film.cut.is_elsewhere):
            notes.append("identity did nothing, because no Reference Sound is connected")
        given = [replace(each or NONE, identity=0.0) for each in (guidance, audio_guidance)]
        if model.acceleration.distilled and given != [NONE, NONE]:
            notes.append("acceleration full has no guidance")
        if left:
            denoised, sounds = conditions.resumed(samples, denoised, left), film.sounds  # its reference is heard on
        result = {"samples": memory.to_graph(denoised)}
        if mask is not None:
            result[MASK] = latent[MASK]
        if left and mask is not None:  # what stays is that of the first start, and not of a state with noise in it
            result[SOURCE] = {"clean": samples, **latent.get(SOURCE, {})}
        remembered = tuple(dict.fromkeys((*latent.get(KEPT, ()), *film.kept, *kept.paths)))
        if len(film.cut.windows) > 1:
            result |= {CUTS: film.cut.hard, KEPT: remembered}
        if film.cut.here is not None:
            result[HERE] = film.cut.stretches
            result[MADE] = tuple(part.path for part in film.cut.made)
        after = streams[0]
        following = after.native if isinstance(after, Generated) else NextNoise(after, streams)
        next_audio = replace(film, sounds=sounds, kept=remembered) if isinstance(audio, FilmSound) else sounds[0]
        return reported(cls, result, following, next_audio, text="; ".join(notes))


def _sample(
    model: memory.Model,
    samples: Tensor,
    film: FilmSound,
    parts: list[WindowInputs],
    conditions: Conditions,
    steering: Steering,
    sources: tuple[NoiseSource, ...],
    kept: FilmWindows,
    progress: Progress,
) -> tuple[tuple[Tensor, tuple[AudioCondition, ...], tuple[NoiseSource, ...]], list[str]]:
    """Samples a stage, window after window, and takes up the parts that were made before. samples: the start of the
    whole, which does not change. Returns what `join` does, and what the report says of the model's weights."""
    windows, generated = film.cut.windows, isinstance(sources[0], Generated)
    if generated and film.cut.here is not None:
        raise InputError(
            "noise: the parts of a film need RandomNoise, so that every machine draws its own share of it."
        )
    clip = len(windows) == 1 and not film.cut.made
    whole = samples if clip else samples.to("cpu", torch.float32, copy=True)
    if film.cut.is_elsewhere:
        return join(film.cut, whole, film.made_elsewhere, sources), []
    keep = keep_nothing
    if model.weights and not generated:
        keep = kept.of(model.identity, film.cut, pixel_size(samples))
    told = StageProgress(progress, windows, steering.steps, film.cut.here)
    seen = [reference for part in parts for reference in part.references]
    largest = max(seen, key=lambda each: each.latent.numel(), default=None)
    passes = steering.passes(film.frozen)
    model.attach()  # the branches of its LoRAs count among the weights of a block
    longest = samples[:, :, film.cut.longest.whole]
    placed = activations.sampling_memory(model, longest, passes, largest, _heaviest(film), steering.sampler)
    (module,) = memory.use(model, memory_required=placed.room)
    model.compute_so()
    with blocks_stay(module.transformer_blocks, module.device, placed.stay):
        made = sample_windows(
            module,
            whole,
            parts,
            conditions,
            steering,
            sources,
            device=module.device,
            hooks=lambda number: told.hooks(number, samples[:, :, windows[number].whole]),
            keep=keep,
            only=film.cut.here,
        )
    return join(film.cut, *made), placed.notes


def _check_references(model: memory.Model, references: References | None, film: FilmSound) -> None:
    """Raises InputError if an IC-LoRA has no reference, or the references were made for other windows. Some IC-LoRAs
    that hear have a sound alone as their reference. Where all parts of a film were made before, none is needed."""
    if references is not None:
        film.check_references(references)
    if references is not None or film.cut.is_elsewhere:
        return
    for fit, strength in model.loras:
        if fit.lora.reference is not None and strength and not (film.referred and fit.hears):
            raise InputError(
                f"model: {fit.lora.path.name} is an IC-LoRA, which needs a reference video; connect Reference to "
                "this sampler, or give it the model without that LoRA."
            )


def _heaviest(film: FilmSound) -> AudioCondition:
    """The sound of the window that takes most memory: the reference's length, and whether sound is made anew, differ by
    window, and a first one may be made elsewhere."""

    def weight(sound: AudioCondition) -> tuple[int, bool]:
        return 0 if sound.reference is None else sound.reference.shape[2], not sound.frozen

    return max(film.sounds, key=weight)


def _left(steering: Steering, film: FilmSound) -> float:
    """The sigma at which a schedule ends: above 0 for the first part of a schedule that was split.

    As in ComfyUI's own samplers, what is made of the latent is then divided by 1 - sigma, so that a sampler that adds
    no noise and has the rest of the schedule continues exactly. Raises InputError if the model changes the sound,
    because noise would stay in it, or if a window would begin with the noise of the one before it.
    """
    left = float(steering.sigmas[-1])
    if left and len(film.cut.windows) > 1:
        raise InputError(
            f"sigmas: they end at {left:g}, but each window of a film is sampled to the end; end them at 0."
        )
    if left and not film.frozen:
        raise InputError(
            f"sigmas: they end at {left:g} and would leave noise in the sound, which the model makes at an audio "
            "strength below 1; end them at 0."
        )
    return left


NODES = (Scheduler, PictureGuidance, AudioGuidance, Accelerate, NegativeAttention, RestartSampling, Sampler)
