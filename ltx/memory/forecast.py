"""Forecasts how much memory a job takes, before anything is loaded.

The bytes of a part come from the shapes and types of its tensors in the file headers. The activations are measured in a
rehearsal (work.py). The forecast counts everything that a device must hold: weights in their form in memory (on a CPU
they may map their file, and its pages count) and tensors. A phase that is too large for the memory only with these
pages still computes, because the system drops them and reads them again. The forecast does not count file pages that
were read only to convert weights, because the system frees them when it needs memory. Nor does it count the workspace
that torch gives cuBLAS at a process's first product and keeps (32 MiB on Hopper, 8 MiB on older cards): it is the
process's and not the job's, and in every later job it is missing from the free memory already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..computing import BLOCKS, CUDA, NEVER
from ..diffusion.conditioning import AudioCondition
from ..diffusion.guidance import NONE
from ..diffusion.kept import disk_needed, limit
from ..diffusion.passes import batch_memory, batch_room, beside_passes, kept_texts, run_as_batch, working_set
from ..diffusion.sound import decode_audio, encode_mel
from ..diffusion.tiling import Tiling, tile_count
from ..diffusion.upscale import PIECE
from ..grid import AUDIO_BINS, AUDIO_CHANNELS, CHANNELS, MEL_FRAMES_PER_LATENT, audio_length, video_shape
from ..job import Compute, Job, Picture
from ..models import size as readable
from ..prompt.gemma4_file import is_gemma4
from ..weights.adapters import Adapter, LowRank, tensors
from ..weights.checkpoint import load_upscaler
from ..weights.quantized import QuantizedLinear, weight_shape
from ..windows import Window
from .encoder import encode_longest, expander, mapped_bytes, text_encoder, write_longest
from .free import free_memory
from .offload import Placement, on_device, pins, residents, waiting
from .rehearsal import META, SPARE, blueprint, bytes_of, loaded, peak, rehearsed, weights
from .tiles import choose, needed
from .work import clip_encoding, image_encoding, one_step, sound_like, step_size, upscaling

EXPANDER, GEMMA, TRANSFORMER = "expander", "Gemma", "transformer"  # the models whose blocks can wait in host memory
OUTSIDE = -1  # stands for the number of a block
REREAD = "fits only in part, so that its files are read again and again"


@dataclass(frozen=True)
class Resident:
    """A model in memory. size: bytes of its weights; blocks: bytes of each block that can be fetched by itself;
    repeated: whether its blocks are called so often that page-locking them takes less time than it saves; mapped: bytes
    of the weights that a CPU reads from their file, and that the system may drop and read again."""

    name: str
    size: int
    blocks: tuple[int, ...] = ()
    repeated: bool = True
    mapped: int = 0

    @classmethod
    def of(cls, name: str, module: nn.Module, blocks: Iterable[nn.Module] = (), mapped: int = 0) -> Resident:
        return cls(name, weights(module), tuple(weights(block) for block in blocks), mapped=mapped)

    def beside(self, blocks: dict[int, int]) -> Resident:
        """This model with more bytes in its blocks, by their numbers, and OUTSIDE of them."""
        sizes = (size + blocks.get(number, 0) for number, size in enumerate(self.blocks))
        return replace(self, size=self.size + sum(blocks.values()), blocks=tuple(sizes))

    def offloaded(self, resident: int = 0) -> int:
        """Bytes on the device while the blocks, except so many that stay, wait in host memory."""
        return self.size - sum(self.blocks) + on_device(self.blocks, resident)

    def waiting(self, resident: int = 0) -> int:
        """Bytes of the blocks that wait in host memory if so many stay on the device."""
        return sum(self.blocks[number] for number in waiting(len(self.blocks), resident))


@dataclass(frozen=True)
class Phase:
    """A phase of a job.

    models: those in memory at once; work: peak bytes of activations; remedy: the change that makes the phase fit, "" if
    it needs none; offloaded: where the blocks of its models are, None if all are on the device; host: bytes of host
    memory in addition to the device; fits: whether the phase fits into the device's free memory; rereads: whether it
    does not, but would without the weights that map their files. passes: of a guided step, 0 if the phase has none;
    batched: whether they run as one batch; room: bytes that a step's passes may take as one, None if the phase is no
    stage.
    """

    name: str
    models: tuple[Resident, ...]
    work: int
    remedy: str = ""
    offloaded: Placement | None = None
    host: int = 0
    fits: bool = True
    rereads: bool = False
    passes: int = 0
    batched: bool = False
    room: float | None = None

    @property
    def weights(self) -> int:
        if self.offloaded is None:
            return sum(model.size for model in self.models)
        return sum(model.offloaded(self.offloaded.resident) if model.blocks else model.size for model in self.models)

    @property
    def peak(self) -> int:
        return self.weights + self.work

    @property
    def kept(self) -> int:
        """Bytes of the peak that no file holds: without them the phase cannot be computed."""
        return self.peak - sum(model.mapped for model in self.models)

    @property
    def _placed(self) -> str:
        """Where the blocks of an offloaded phase are, in words."""
        if self.offloaded is None:
            return ""
        total = sum(len(model.blocks) for model in self.models)
        stay = self.offloaded.resident
        locked = ", pinned once" if self.offloaded.pinned else ", pinned at each fetch"
        kept = f"{stay} stay on the device" if stay != 1 else "1 stays on the device"
        return f"{total - stay} of {total} blocks wait in host memory{locked * self.offloaded.locked}; {kept}"

    def __str__(self) -> str:
        models = " + ".join(f"{model.name} {readable(model.size)}" for model in self.models)
        misfit = REREAD if self.rereads else "does not fit"
        state = self._placed or self.remedy or ("fits" if self.fits else misfit)
        if (self._placed or self.remedy) and not self.fits:
            state += ", and may not fit even so"
        order = f", {self.passes} passes {'in one batch' if self.batched else 'one by one'}" if self.passes > 1 else ""
        beside = f" and {readable(self.host)} of host memory" if self.host else ""
        return f"{self.name}: {models}, computing {readable(self.work)}{order}: {readable(self.peak)}{beside}: {state}"


@dataclass(frozen=True, eq=False)
class Step:
    """What a step of a stage takes. rehearse: whether the passes run as one batch → peak bytes; tokens: of both
    streams; passes: of a guided step; kept: bytes of the texts' keys and values that are kept where there is room."""

    model: nn.Module
    device: torch.device
    tokens: int
    passes: int
    kept: int
    rehearse: Callable[[bool], int]

    def room(self, free: float) -> float:
        """Bytes that the passes may take as one batch, with so many free beside the weights. It is too little for
        them if the rehearsed batch does not fit into a GPU."""
        room = batch_room(self.device, max(free, 0))
        if self.device.type == "cpu" or not self._as_batch(room) or self.rehearse(True) <= free:
            return room
        return self.passes * working_set(self.model, self.tokens)

    def batched(self, free: float) -> bool:
        return self._as_batch(self.room(free))

    def _as_batch(self, room: float) -> bool:
        return run_as_batch(self.model, self.tokens, self.passes, room)

    def work(self, free: float) -> int:
        """Bytes of a step with so many free beside the weights."""
        left = beside_passes(self.model, self.tokens, self.passes, self.room(free))
        kept = self.kept if self.device.type == "cpu" else min(self.kept, int(left))
        return self.rehearse(self.batched(free)) + kept

    def needed(self, free: float) -> int:
        """Bytes that must stay free so that a step runs as with so many free bytes, and keeps all its texts."""
        batched = self.batched(free)
        work = self.rehearse(batched) + self.kept
        return max(work, batch_memory(self.model, self.tokens, self.passes)) if batched else work


@dataclass(frozen=True)
class Forecast:
    """The memory that each phase of a job takes on a device with `free` bytes. tiling: the tiling that the decoder
    should use, None for the clip as one tile. windows: what a film in windows takes on the disk, in words. advice: what
    may help if a phase does not fit, in words."""

    device: str
    free: int
    phases: tuple[Phase, ...]
    tiling: Tiling | None = None
    windows: str = ""
    advice: str = ""

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    def offloaded(self, name: str) -> Placement | None:
        """Where the blocks of the model of that name wait, None if it is whole on the device. This is the same in all
        phases."""
        found = (phase for phase in self.phases if any(name == model.name for model in phase.models))
        return next((phase.offloaded for phase in found if phase.offloaded is not None), None)

    def room(self, stage: int) -> float | None:
        """Bytes that the passes of a step may take as one batch in the stage of that number."""
        return [phase.room for phase in self.phases if phase.room is not None][stage]

    def lines(self) -> list[str]:
        """Lines for the terminal and for doctor: a header, then one line for each phase, in order, and the advice."""
        known = f"{readable(self.free)} free" if self.free < 2**62 else "free memory unknown"
        head = f"memory on {self.device}, {known}; the most at once {readable(self.peak)}"
        return [line for line in (head, self.windows, *map(str, self.phases), self.advice) if line]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def estimate(job: Job, compute: Compute, free: int | None = None, host: int | None = None) -> Forecast:
    """Forecasts the memory of each phase of `pipeline.run` from file headers alone. free: bytes that the job may use on
    the device, host: in host memory; by default they are measured. Raises InputError as loading the parts does."""
    device = torch.device(compute.device)
    room = free_memory(device) if free is None else free
    host = free_memory("cpu") if host is None else host
    planner = _Planner(device.type, room, compute.offload, host)
    measured = _Measured(replace(job, checkpoint=job.checkpoint.unopened()), compute, planner)
    measured.encoding()
    measured.sampling()
    tiling = measured.decoding()
    phases = planner.settled()
    advice = "" if all(phase.fits for phase in phases) else _advice(device, compute, phases)
    return Forecast(str(device), room, phases, tiling, _windows(job), advice)


def _advice(device: torch.device, compute: Compute, phases: tuple[Phase, ...]) -> str:
    """What may help where a phase does not fit."""
    smaller = "a checkpoint and a text encoder in fewer bits, a smaller size or fewer frames"
    if all(phase.fits or phase.rereads for phase in phases):
        return f"what fits only in part is slow: try {smaller}"
    widest = device.type == "cpu" and compute.dtype in (None, torch.float32)
    flags = [*(["--dtype bfloat16"] if widest else []), *([] if compute.fp8 else ["--fp8"])]
    return f"the system may end what does not fit: try {', '.join([*flags, smaller])}"


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

    def _loaded(self, load: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
        """A large part, and the bytes of it that map their file while it computes."""
        module, mapped = loaded(load)
        return module, mapped if self.on == "cpu" else 0

    def encoding(self) -> None:
        """Adds the phases that encode prompts, sound and images."""
        job, dtype, add = self.job, self.compute.dtype, self.planner.add
        if job.files.expander is not None and job.request.enable_prompt_expansion:
            size, blocks, language = expander(job.files.expander, dtype, self.compute.fp8)
            writing = peak(lambda: write_longest(language), self.on)
            add("expand prompt", (Resident(EXPANDER, size, blocks),), writing)
        connectors, mapped = self._loaded(lambda: job.checkpoint.connectors(dtype))
        mapped = max(mapped - _merged(connectors, self._connector_changes), 0)
        encoder = job.files.text_encoder, dtype, self.compute.fp8
        size, blocks, language = text_encoder(*encoder)
        gemma = Resident(GEMMA, size, blocks, repeated=False)  # each layer is called once a prompt
        gemma = replace(gemma, mapped=mapped_bytes(*encoder) if self.on == "cpu" else 0)
        writes = job.files.expander is None and not is_gemma4(job.files.text_encoder)  # LTX-2.5's Gemma only reads
        if writes and job.request.enable_prompt_expansion:
            gemma = replace(gemma, repeated=True)  # and once a token
            add("expand prompt", (gemma,), peak(lambda: write_longest(language), self.on))
        work = peak(lambda: encode_longest(language, connectors, job.files.text_encoder), self.on)
        add("encode text", (gemma, Resident.of("connectors", connectors, mapped=mapped)), work)

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
            stage = size if job.reference.use.acts(first=False) else self.first
            work = max(work, clip_encoding(vae, *job.reference.size(stage[::-1])[::-1], self.on))
        name = "encode images" if job.source is None and job.reference is None else "encode pictures"
        self.planner.add(name, (Resident.of("video VAE", vae),), work)

    def _reference(self, size: tuple[int, int], first: bool) -> tuple[Tensor | None, float]:
        """The reference's latent beside a stage of that height and width, and its attention."""
        reference, window = self.job.reference, max(self.clip.windows, key=lambda each: each.frames)
        if reference is None or not reference.use.acts(first):
            return None, 1.0
        shape = video_shape(reference.frames(window), *reference.size(size[::-1])[::-1])
        return torch.zeros(1, CHANNELS, *shape), reference.use.attention

    def sampling(self) -> None:
        """Adds the stages and the upscaler between them."""
        job, dtype, two_stages = self.job, self.compute.dtype, self.clip.two_stages
        fp8 = {"fp8": True} if self.compute.fp8 else {}
        model, mapped = self._loaded(lambda: job.checkpoint.transformer(dtype, **fp8))
        transformer = Resident.of(TRANSFORMER, model, model.transformer_blocks).beside(self._branches(model))
        merged = [_merged(model, self._changes(stage)) for stage in range(1 + two_stages)]
        models = [(replace(transformer, mapped=max(mapped - each, 0)), *self._mapped_loras()) for each in merged]
        merging, editing = self._changing(model)
        kept = self._kept(model)
        model.transformer_blocks = model.transformer_blocks[:3]  # three blocks are enough to reach a step's peak

        first = "first stage" if two_stages else "sample"
        self._stage(first, models[0], model, self.first, merging, editing, kept[0], guided=True)
        if two_stages:
            upsampler = blueprint(lambda: load_upscaler(job.files.upscaler, dtype))
            vae = blueprint(job.checkpoint.video_statistics)
            piece = video_shape(self.clip.frames, *self.first)
            piece = (min(piece[0], PIECE), *piece[1:]) if len(self.clip.windows) > 1 else piece
            work = upscaling(upsampler, vae, piece, self.on) + self._whole(self.first, self.full)
            self.planner.add("upscale", (models[0][0], Resident.of("upscaler", upsampler)), work)
            self._stage("second stage", models[1], model, self.full, merging, editing, kept[1], guided=False)

    def _kept(self, model: nn.Module) -> tuple[int, int]:
        """Bytes of the texts' keys and values that the first and the second stage keep between the steps."""
        steering = self.job.steering[0]
        negative = 0 if steering.nag is None else 1  # NAG reads both texts together
        texts = 1
        acting = steering.acting(self.job.keeps_sound, self.job.keeps_picture, self.job.referred)
        if any(guidance.runs_uncond for guidance in acting):
            # If some passes do not run beside the negative one, both texts together and the positive one are kept.
            some = acting[1].runs_alone or steering.acceleration.guided_above(steering.sigmas) > 0
            texts = 3 if some and self.on != "cpu" else 2
        return kept_texts(model, texts + negative), kept_texts(model, 1 + negative)

    def _changes(self, *stages: int) -> Iterator[tuple[str, Adapter]]:
        """The changes of the transformer by those LoRAs that act in one of these stages, by default in any."""
        job = self.job
        loras = [job.loras[stage] for stage in stages or range(1 + self.clip.two_stages)]
        for (fit, *_), strengths in zip(job.fits, zip(*loras, strict=True), strict=True):
            if any(strength for _, strength in strengths):
                yield from fit.changes.items()

    @property
    def _connector_changes(self) -> Iterator[tuple[str, Adapter]]:
        """The changes of the text connectors by the LoRAs, at their strengths of the first stage."""
        for (_, *fits), (_, strength) in zip(self.job.fits, self.job.loras[0], strict=True):
            for fit in fits if strength else ():
                yield from fit.changes.items()

    def _changing(self, model: nn.Module) -> tuple[int, int]:
        """Bytes that LoRAs take for one weight: when they are merged, and in a step beside a quantized weight.

        Both hold W, its change and their sum in float32; a change that is no plain pair holds one more.
        """
        merging, editing = [0], [0]
        for name, adapter in self._changes():
            size = (12 if isinstance(adapter, LowRank) else 16) * weight_shape(model, name).numel()
            if not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantizedLinear):
                merging.append(size)
            elif not isinstance(adapter, LowRank):
                editing.append(size)
        return max(merging), max(editing)

    def _branches(self, model: nn.Module) -> dict[int, int]:
        """Bytes that LoRAs beside quantized layers take on a GPU, by the number of the block. On a CPU they map their
        file (`_mapped_loras`)."""
        found: dict[int, int] = {}
        if self.on == "cpu":
            return found
        for name, adapter in self._changes():
            owner = name.rpartition(".")[0]
            if isinstance(model.get_submodule(owner), QuantizedLinear):
                number = int(owner.split(".")[1]) if owner.startswith("transformer_blocks.") else OUTSIDE
                found[number] = found.get(number, 0) + bytes_of(tensors(adapter))
        return found

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
        steering, stage = job.steering[0], (job.keeps_sound, job.keeps_picture, job.referred)
        first = guided or not clip.two_stages
        reference, attention = self._reference(size, first)
        images = [not image.frame for image in self._at_once()]

        def given(step: Callable[..., Any], **more: Any) -> Any:
            return step(
                model,
                torch.zeros(1, CHANNELS, *video_shape(self.frames, *size)),
                self._heard(first),
                steering.acting(*stage) if guided else (NONE, NONE),
                images=images,
                reference=reference,
                attention=attention,
                still=job.keeps_picture,
                **more,
            )

        @cache
        def rehearse(batched: bool) -> int:
            more = {"reuse": steering.acceleration.reuse if guided else 0.0, "nag": steering.nag}
            work = peak(lambda: given(one_step, **more, room=math.inf if batched else 0.0), self.on)
            return max(merging, work + editing) + self._whole(size)

        with rehearsed(self.on):
            tokens, passes = given(step_size)
        device = torch.device(self.compute.device)
        self.planner.add(name, models, Step(model, device, tokens, passes, kept, rehearse))

    def _heard(self, first: bool) -> AudioCondition:
        """The sound of a window as a stage is given it, which may be made anew or have other sounds beside it. first:
        whether it is the first stage."""
        job = self.job
        voices = [voice is not None for _, voice in job.speakers]
        referred = self.sound if job.example is not None and job.example.use.hears(first) else 0
        return sound_like(self.frames, self.clip.fps, job.request.audio_strength, job.renews_sound, voices, referred)

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
        stages = self.job.loras[: 1 + self.clip.two_stages]
        files = {lora.path: lora for stage in stages for lora, strength in stage if strength}
        if self.on != "cpu" or not files:
            return ()
        adapters = [adapter for lora in files.values() for adapter in lora.changes.values()]
        size = bytes_of(tensor for adapter in adapters for tensor in tensors(adapter))
        return (Resident("LoRAs", size, mapped=size),)

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


def _merged(module: nn.Module, changes: Iterable[tuple[str, Adapter]]) -> int:
    """Bytes of the weights that LoRAs are merged into: these no longer map their file."""
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name, _ in changes}
    merged = (name for name, owner in owners.items() if not isinstance(owner, QuantizedLinear))
    return bytes_of(module.get_parameter(name) for name in merged)


class _Planner:
    """Collects phases and makes them fit into `room` bytes of a device, with the means that each phase has. host: bytes
    of host memory, where blocks can wait."""

    def __init__(self, device: str, room: int, offload: str, host: int) -> None:
        self.device, self.room, self.offload, self.host = device, room, offload, host
        self.phases: list[Phase] = []
        self.steps: dict[str, Step] = {}  # by the name of the phase

    def add(self, name: str, models: tuple[Resident, ...], work: int | Step) -> None:
        """Adds a phase. work: bytes, or the step of a stage."""
        if isinstance(work, Step):
            self.steps[name], work = work, 0
        phase = self._computing(Phase(name, models, work))
        can_offload = self.device != "cpu" and self.offload != NEVER and any(model.blocks for model in models)
        # What computing takes is known to a tenth, and a stage that runs out of memory cannot try again with less.
        if can_offload and (self.offload == BLOCKS or not self._fits(phase, SPARE)):
            phase = self._computing(replace(phase, offloaded=Placement()))
        self.phases.append(phase)

    def settled(self) -> tuple[Phase, ...]:
        """The final phases. A model is placed once, so a model that is offloaded in one phase is offloaded in all, and
        as many blocks stay on the device as fit beside each phase."""
        offloaded = {model.name for phase in self.phases if phase.offloaded for model in phase.models if model.blocks}
        placed = {name: self._placement(name) for name in offloaded}
        found = []
        for phase in self.phases:
            own = next((placed[model.name] for model in phase.models if model.name in placed), None)
            found.append(phase if own is None else self._computing(replace(phase, offloaded=own)))
        return tuple(found)

    def _placement(self, name: str) -> Placement:
        """Where the blocks of a model wait. Whoever asks for `--offload blocks` wants the device free: none stays."""
        having = [(phase, model) for phase in self.phases for model in phase.models if model.name == name]
        stay = 0 if self.offload == BLOCKS else min(self._staying(*each) for each in having)
        locked = self.device == CUDA
        pinned = locked and any(model.repeated for _, model in having)
        return Placement(stay, pinned and pins(having[0][1].waiting(stay), self.host), locked)

    def _staying(self, phase: Phase, model: Resident) -> int:
        """The number of the model's blocks that fit beside the phase. The passes of a step come first: as one batch
        they save a tenth of each step, and a block that waits costs no time while others compute."""
        rest = replace(phase, offloaded=Placement()).weights - on_device(model.blocks, 0)
        step, left = self.steps.get(phase.name), self.room - rest
        needed = phase.work if step is None else step.needed(left - on_device(model.blocks, 0))
        return residents(model.blocks, left - needed - SPARE * self.room)

    def _computing(self, phase: Phase) -> Phase:
        """A phase with the work of its step, and whether it fits."""
        step, free = self.steps.get(phase.name), self.room - phase.weights
        if step is not None:
            batched, room, passes = step.batched(free), step.room(free), step.passes
            phase = replace(phase, work=step.work(free), passes=passes, batched=batched, room=room)
        fits = self._fits(phase)
        return replace(phase, fits=fits, rereads=not fits and phase.kept <= self.room)

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

    def _fits(self, phase: Phase, spare: float = 0.0) -> bool:
        """Whether there is room for a phase, with that share more for computing."""
        return phase.peak + spare * phase.work <= self.room
