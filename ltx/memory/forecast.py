"""Forecasts how much memory a job takes, before anything is loaded.

The bytes of a part come from the shapes and types of its tensors in the file headers. The activations are measured in a
rehearsal (work.py). The forecast counts everything that a device must hold: weights in their form in memory (on a CPU
they may map their file, and its pages count) and tensors. It does not count file pages that were read only to convert
weights, because the system frees them when it needs memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..diffusion.conditioning import AudioCondition
from ..diffusion.guidance import NONE
from ..diffusion.kept import disk_needed, limit
from ..diffusion.passes import kept_texts
from ..diffusion.sound import decode_audio, encode_mel
from ..diffusion.tiling import Tiling, tile_count
from ..diffusion.upscale import PIECE
from ..edits import ALL
from ..job import BLOCKS, NEVER, Compute, Job, Picture
from ..latents import AUDIO_BINS, AUDIO_CHANNELS, CHANNELS, MEL_FRAMES_PER_LATENT, audio_length, video_shape
from ..models import size as readable
from ..weights.adapters import LowRank, tensors
from ..weights.checkpoint import load_upscaler
from ..weights.quantized import QuantizedLinear, weight_shape
from ..windows import Window
from .encoder import encode_longest, expander, text_encoder, write_longest
from .free import free_memory
from .rehearsal import META, blueprint, bytes_of, peak, weights
from .tiles import choose, needed
from .work import clip_encoding, image_encoding, one_step, upscaling

EXPANDER, GEMMA, TRANSFORMER = "expander", "Gemma", "transformer"  # the models whose blocks can wait in host memory
OFFLOADED = "blocks wait in host memory"


@dataclass(frozen=True)
class Resident:
    """A model in memory. size: bytes of its weights; blocks: bytes of each block that can be fetched by itself."""

    name: str
    size: int
    blocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str, module: nn.Module, blocks: Iterable[nn.Module] = ()) -> Resident:
        return cls(name, weights(module), tuple(weights(block) for block in blocks))

    @property
    def offloaded(self) -> int:
        """Bytes on the device while the blocks wait in host memory: one block computes and the next one is copied."""
        return self.size - sum(self.blocks) + sum(sorted(self.blocks)[-2:])


@dataclass(frozen=True)
class Phase:
    """A phase of a job. models: those in memory at once; work: peak bytes of activations; remedy: the change that makes
    the phase fit, "" if it needs none; offloaded: whether blocks wait in host memory; host: bytes of host memory in
    addition to the device; fits: whether the phase fits into the device's free memory."""

    name: str
    models: tuple[Resident, ...]
    work: int
    remedy: str = ""
    offloaded: bool = False
    host: int = 0
    fits: bool = True

    @property
    def weights(self) -> int:
        return sum(model.offloaded if self.offloaded else model.size for model in self.models)

    @property
    def peak(self) -> int:
        return self.weights + self.work

    def __str__(self) -> str:
        models = " + ".join(f"{model.name} {readable(model.size)}" for model in self.models)
        state = self.remedy or ("fits" if self.fits else "does not fit")
        if self.remedy and not self.fits:
            state += ", and may not fit even so"
        beside = f" and {readable(self.host)} of host memory" if self.host else ""
        return f"{self.name}: {models}, computing {readable(self.work)}: {readable(self.peak)}{beside}: {state}"


@dataclass(frozen=True)
class Forecast:
    """The memory that each phase of a job takes on a device with `free` bytes. tiling: the tiling that the decoder
    should use, None for the clip as one tile. windows: what a film in windows takes on the disk, in words."""

    device: str
    free: int
    phases: tuple[Phase, ...]
    tiling: Tiling | None = None
    windows: str = ""

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    def offloaded(self, name: str) -> bool:
        """Whether the blocks of the model of that name wait in host memory. This holds in all phases or in none."""
        return any(phase.offloaded and any(name == model.name for model in phase.models) for phase in self.phases)

    def lines(self) -> list[str]:
        """Lines for the terminal and for doctor: a header, then one line for each phase, in order."""
        known = f"{readable(self.free)} free" if self.free < 2**62 else "free memory unknown"
        head = f"memory on {self.device}, {known}; the most at once {readable(self.peak)}"
        return [head, *([self.windows] if self.windows else []), *map(str, self.phases)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def estimate(job: Job, compute: Compute, free: int | None = None) -> Forecast:
    """Forecasts the memory of each phase of `pipeline.run` from file headers alone. free: bytes that the job may use,
    by default measured on the device. Raises InputError as loading the parts does."""
    device = torch.device(compute.device)
    room = free_memory(device) if free is None else free
    planner = _Planner(device.type, room, compute.offload)
    measured = _Measured(job, compute, planner)
    measured.encoding()
    measured.sampling()
    tiling = measured.decoding()
    return Forecast(str(device), room, planner.settled(), tiling, _windows(job))


def _windows(job: Job) -> str:
    """What the windows of a film take on the disk; "" if the request has none."""
    if job.request.windows is None:
        return ""
    windows, needed = job.plan.windows, readable(disk_needed(job.plan.windows, *job.plan.sizes))
    count = (
        f"{len(windows)} windows of {max(window.frames for window in windows)} frames"
        if len(windows) > 1
        else "one window"
    )
    return f"{count}: {needed} on the disk until the film is written" if limit() else f"{count}, which are not kept"


class _Measured:
    """Rehearses each phase of a job and gives the result to the planner."""

    def __init__(self, job: Job, compute: Compute, planner: _Planner) -> None:
        self.job, self.clip, self.compute, self.planner = job, job.plan, compute, planner
        self.on = torch.device(compute.device).type
        self.full, self.first = (self.clip.height, self.clip.width), self.clip.first_size[::-1]
        self.frames = max(window.frames for window in self.clip.windows)  # stages and sound take one at a time
        self.sound = audio_length(self.frames, self.clip.fps)

    def part(self, load: Callable[..., nn.Module]) -> nn.Module:
        """A part of the checkpoint as the job loads it."""
        return blueprint(lambda: load(self.compute.dtype))

    def encoding(self) -> None:
        """Adds the phases that encode prompts, sound and images."""
        job, dtype, add = self.job, self.compute.dtype, self.planner.add
        if job.files.expander is not None and job.request.enable_prompt_expansion:
            size, blocks, language = expander(job.files.expander, dtype, self.compute.fp8)
            writing = peak(lambda: write_longest(language), self.on)
            add("expand prompt", (Resident(EXPANDER, size, blocks),), writing)
        connectors = blueprint(lambda: job.checkpoint.connectors(dtype))
        size, blocks, language = text_encoder(job.files.text_encoder, dtype, self.compute.fp8)
        work = peak(lambda: encode_longest(language, connectors, job.files.text_encoder), self.on)
        add("encode text", (Resident(GEMMA, size, blocks), Resident.of("connectors", connectors)), work)

        mel = MEL_FRAMES_PER_LATENT * self.sound
        audio_vae = self.part(job.checkpoint.audio_encoder)
        work = peak(lambda: encode_mel(audio_vae, torch.zeros(1, 2, mel, 64)), self.on)
        add("encode sound", (Resident.of("audio VAE", audio_vae),), work)
        self._pictures()

    def _pictures(self) -> None:
        """Adds the phase that encodes the images, the source and the reference."""
        job, size = self.job, self.full if self.clip.two_stages else self.first
        if not job.images and job.source is None and job.reference is None:
            return
        vae = self.part(job.checkpoint.video_encoder)
        work = image_encoding(vae, *size, self.on) if job.images else 0
        if job.source is not None:
            work = max(work, clip_encoding(vae, *size, self.on)) + self._whole(size) + self._whole(self.first)
        elif job.reference is not None:
            stage = size if job.reference.use.stages == ALL else self.first
            work = max(work, clip_encoding(vae, *job.reference.size(stage[::-1])[::-1], self.on))
        name = "encode images" if job.source is None and job.reference is None else "encode pictures"
        self.planner.add(name, (Resident.of("video VAE", vae),), work)

    def _reference(self, size: tuple[int, int], first: bool) -> tuple[Tensor | None, float]:
        """The reference's latent beside a stage of that height and width, and its attention."""
        reference, window = self.job.reference, max(self.clip.windows, key=lambda each: each.frames)
        if reference is None or not (first or reference.use.stages == ALL):
            return None, 1.0
        shape = video_shape(reference.frames(window), *reference.size(size[::-1])[::-1])
        return torch.zeros(1, CHANNELS, *shape), reference.use.attention

    def sampling(self) -> None:
        """Adds the stages and the upscaler between them."""
        job, dtype, two_stages = self.job, self.compute.dtype, self.clip.two_stages
        fp8 = {"fp8": True} if self.compute.fp8 else {}
        model = blueprint(lambda: job.checkpoint.transformer(dtype, **fp8))
        transformer = Resident.of(TRANSFORMER, model, model.transformer_blocks)
        models = (transformer, *self._mapped_loras())
        merging, editing = self._changing(model)
        kept = self._kept(model)
        model.transformer_blocks = model.transformer_blocks[:3]  # three blocks are enough to reach a step's peak

        first = "first stage" if two_stages else "sample"
        self._stage(first, models, model, self.first, merging, editing, kept[0], guided=True)
        if two_stages:
            upsampler = blueprint(lambda: load_upscaler(job.files.upscaler, dtype))
            vae = blueprint(job.checkpoint.video_statistics)
            piece = video_shape(self.clip.frames, *self.first)
            piece = (min(piece[0], PIECE), *piece[1:]) if len(self.clip.windows) > 1 else piece
            work = upscaling(upsampler, vae, piece, self.on) + self._whole(self.first, self.full)
            self.planner.add("upscale", (transformer, Resident.of("upscaler", upsampler)), work)
            self._stage("second stage", models, model, self.full, merging, editing, kept[1], guided=False)

    def _kept(self, model: nn.Module) -> tuple[int, int]:
        """Bytes of the texts' keys and values that the first and the second stage keep between the steps."""
        steering = self.job.steering[0]
        texts = 1
        if any(guidance.runs_uncond for guidance in steering.acting(self.job.keeps_sound, self.job.keeps_picture)):
            # If some steps are not guided, both texts together and the positive one alone are kept.
            texts = 3 if steering.acceleration.guided_above(steering.sigmas) > 0 and self.on != "cpu" else 2
        return kept_texts(model, texts), kept_texts(model, 1)

    def _changing(self, model: nn.Module) -> tuple[int, int]:
        """Bytes that LoRAs take for one weight: when they are merged, and in a step beside a quantized weight.

        Both hold W, its change and their sum in float32; a change that is no plain pair holds one more.
        """
        merging, editing = [0], [0]
        for name, adapter in ((n, a) for fit, *_ in self.job.fits for n, a in fit.changes.items()):
            size = (12 if isinstance(adapter, LowRank) else 16) * weight_shape(model, name).numel()
            if not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantizedLinear):
                merging.append(size)
            elif not isinstance(adapter, LowRank):
                editing.append(size)
        return max(merging), max(editing)

    def _stage(
        self,
        name: str,
        models: tuple[Resident, ...],
        model: nn.Module,
        size: tuple[int, int],
        merging: int,
        editing: int,
        kept: int,
        guided: bool,
    ) -> None:
        clip, job = self.clip, self.job
        steering, frozen = job.steering[0], (job.keeps_sound, job.keeps_picture)

        def step(room: float) -> int:
            def work() -> None:
                reference, attention = self._reference(size, guided or not clip.two_stages)
                sound = torch.zeros(1, AUDIO_CHANNELS, self.sound, AUDIO_BINS)
                one_step(
                    model,
                    torch.zeros(1, CHANNELS, *video_shape(self.frames, *size)),
                    AudioCondition(sound, self.frames, clip.fps, job.request.audio_strength),
                    steering.acting(*frozen) if guided else (NONE, NONE),
                    images=[not image.frame for image in self._at_once()],
                    reference=reference,
                    attention=attention,
                    room=room,
                )

            return max(merging, peak(work, self.on) + editing) + self._whole(size)

        one_by_one = step(0.0)
        batched = step(math.inf) if guided and self.on != "cpu" else one_by_one
        # A GPU keeps less of the texts if it is short of memory.
        smaller = one_by_one + kept if self.on == "cpu" else one_by_one
        self.planner.add(name, models, batched + kept, smaller=smaller)

    def _at_once(self) -> list[Picture]:
        """The images of the window that has most of them."""

        def inside(window: Window) -> list[Picture]:
            return [image for image in self.job.images if window.frame_within(image.frame) is not None]

        return max(map(inside, self.clip.windows), key=len)

    def _whole(self, *sizes: tuple[int, int]) -> int:
        """Bytes of the latents of the whole clip, of these heights and widths, that lie in host memory beside a window.
        They count on a CPU, and with several windows, since one window is the whole."""
        if self.on != "cpu" or len(self.clip.windows) == 1:
            return 0
        cells = (math.prod(video_shape(self.clip.frames, *size)) for size in sizes)
        return sum(cells) * CHANNELS * torch.float32.itemsize

    def _mapped_loras(self) -> tuple[Resident, ...]:
        """The pages of the LoRA files on a CPU, which merging reads."""
        files = {loaded.path: loaded for loaded, _ in self.job.loras[1]}
        if self.on != "cpu" or not files:
            return ()
        adapters = [adapter for loaded in files.values() for adapter in loaded.changes.values()]
        return (Resident("LoRAs", bytes_of(tensor for adapter in adapters for tensor in tensors(adapter))),)

    def decoding(self) -> Tiling | None:
        """Adds the phases that decode sound and picture. Returns the tiling that fits."""
        clip = self.clip
        if not self.job.keeps_sound:
            vocoder = blueprint(lambda: self.job.checkpoint.vocoder(torch.float32))
            latent = torch.zeros(1, AUDIO_CHANNELS, self.sound, AUDIO_BINS)
            audio_vae = self.part(self.job.checkpoint.audio_decoder)
            work = peak(lambda: decode_audio(audio_vae, vocoder, latent, self.frames, clip.fps), self.on)
            models = Resident.of("audio VAE", audio_vae), Resident.of("vocoder", vocoder)
            self.planner.add("decode sound", models, work)
        decoder = self.part(self.job.checkpoint.video_decoder)
        return self.planner.decode(decoder, video_shape(clip.frames, *self.full), self.compute.tiling)


class _Planner:
    """Collects phases and makes them fit into `room` bytes of a device, with the means that each phase has."""

    def __init__(self, device: str, room: int, offload: str) -> None:
        self.device, self.room, self.offload = device, room, offload
        self.phases: list[Phase] = []

    def add(self, name: str, models: tuple[Resident, ...], work: int, smaller: int | None = None) -> None:
        """Adds a phase. smaller: the work in bytes if the passes of a step run one by one."""
        phase = Phase(name, models, work)
        if smaller is not None and smaller < work and not self._fits(phase):
            phase = replace(phase, work=smaller, remedy="guidance passes one by one")
        can_offload = self.device != "cpu" and self.offload != NEVER and any(model.blocks for model in models)
        if can_offload and (self.offload == BLOCKS or not self._fits(phase)):
            phase = replace(phase, offloaded=True, remedy=OFFLOADED)
            if smaller is not None and smaller < work:
                phase = replace(phase, work=work if self._fits(replace(phase, work=work)) else smaller)
        self.phases.append(replace(phase, fits=self._fits(phase)))

    def settled(self) -> tuple[Phase, ...]:
        """The final phases. A model that is offloaded in one phase is offloaded in all, because it is placed once."""
        offloaded = {model.name for phase in self.phases if phase.offloaded for model in phase.models if model.blocks}
        found = []
        for phase in self.phases:
            if not phase.offloaded and any(model.name in offloaded for model in phase.models):
                phase = replace(phase, offloaded=True, remedy=OFFLOADED)
            found.append(replace(phase, fits=self._fits(phase)))
        return tuple(found)

    def decode(self, vae: nn.Module, latent: tuple[int, int, int], tiling: Tiling | None) -> Tiling | None:
        """Adds the decode phase. Open sizes are chosen; the tiles get smaller until it fits, as they do in the decoder
        itself. Returns the tiling."""
        clip, models = torch.empty(1, CHANNELS, *latent, device=META), (Resident.of("video VAE", vae),)
        requested = None if tiling is None or tiling.open else tiling
        tiling = tiling and choose(vae, latent, tiling, self.device, self.room)
        while True:
            work, host = needed(vae, latent, tiling, self.device)
            on_host = self.device == "cpu"
            phase = Phase("decode", models, work + host if on_host else work, host=0 if on_host else host)
            following = (tiling or Tiling.whole(clip)).smaller(clip)
            if self._fits(phase) or following is None:
                break
            tiling = following
        remedy = "" if tiling == requested or tile_count(latent, tiling) == 1 else f"in tiles of {tiling}"
        self.phases.append(replace(phase, remedy=remedy, fits=self._fits(phase)))
        return tiling

    def _fits(self, phase: Phase) -> bool:
        return phase.peak <= self.room
