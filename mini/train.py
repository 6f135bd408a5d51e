"""The whole training in order, each stage within its budget; stages that are done are passed over.

Everything lies in one folder: a state a stage, the encoded clips, the text encoder, a log. A run that was killed goes
on where its last minute was saved. Where there is no state but an earlier export, training starts from its weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..ltx.weights.checkpoint import load_checkpoint, load_upscaler
from . import adapters, audio_vae, dataset, export, flow, sizes, video_vae
from .flow import FlowOptions
from .text import write_gemma
from .training import Options, Stage, read_average

# Seconds of one core. The clips are encoded within theirs, however many that makes.
BUDGETS = {
    "vae": 10_800.0,
    "audio_vae": 900.0,
    "vocoder": 1_800.0,
    "clips": 3_600.0,
    "transformer": 14_400.0,
    "distilled": 1_800.0,
    "upscaler": 1_200.0,
    "dolly_in": 600.0,
    "static": 600.0,
}
RATES = {
    "vae": 1.5e-4,
    "audio_vae": 2e-3,
    "vocoder": 1e-3,
    "transformer": 2e-3,
    "distilled": 1e-3,
    "upscaler": 1e-3,
    "dolly_in": 1e-3,
    "static": 1e-3,
}
PARTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")


@dataclass(frozen=True)
class Settings:
    """folder: of states; earlier: an exported set to start from; scale: of all budgets; budgets, rates: by stage;
    keep_latents: the VAE's encoder is not trained."""

    folder: Path
    earlier: Path | None = None
    scale: float = 1.0
    budgets: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    clips: int = 3000
    keep_latents: bool = False
    rows: int = 24

    def seconds(self, stage: str) -> float:
        return float(self.budgets.get(stage, BUDGETS[stage] * self.scale))

    def options(self, stage: str) -> Options:
        values = {"seconds": self.seconds(stage), "seed": self.seed, "device": self.device}
        values["rate"] = float(self.rates.get(stage, RATES[stage]))
        if stage in ("transformer", "distilled", "dolly_in", "static"):
            return FlowOptions(**values, rows=self.rows)
        return Options(**values)


def state(folder: Path, stage: str) -> dict[str, Tensor] | None:
    """The averaged weights of a stage, if it was begun."""
    return read_average(folder, stage) if (folder / f"{stage}.state.safetensors").is_file() else None


def trained(settings: Settings, part: str) -> nn.Module:
    """A part as it stands: out of its stage's state, of an earlier export, or as it starts."""
    stage = "transformer" if part == "connectors" else part
    if (weights := state(settings.folder, stage)) is not None:
        if stage == "transformer":
            weights = {k.split(".", 1)[1]: v for k, v in weights.items() if k.startswith(f"{part}.")}
        module = sizes.module(part)
        module.load_state_dict(weights)
    elif (module := earlier(settings, part)) is None:
        starts = {"vae": video_vae.fresh, "audio_vae": audio_vae.fresh, "vocoder": audio_vae.fresh_vocoder}
        if part in ("transformer", "connectors"):
            torch.manual_seed(settings.seed)
            module = getattr(flow.Model(), part)
        else:
            module = starts[part]() if part in starts else sizes.module(part)
    if part in ("vae", "upscaler"):
        (video_vae if part == "vae" else adapters).cut(module)
    return module.eval()


def earlier(settings: Settings, part: str) -> nn.Module | None:
    """That part of the earlier export, trainable, in float32."""
    if settings.earlier is None:
        return None
    if part == "upscaler":
        path = settings.earlier / sizes.FILES["upscaler"]
        return load_upscaler(path, torch.float32).requires_grad_(True) if path.is_file() else None
    path = settings.earlier / sizes.FILES["checkpoint"]
    if not path.is_file():
        return None
    opened = load_checkpoint(path)
    load = {"vae": opened.video_vae, "audio_vae": opened.audio_vae, "vocoder": opened.vocoder}
    load |= {"transformer": opened.transformer, "connectors": opened.connectors}
    module = sizes.module(part)
    module.load_state_dict(load[part](torch.float32).state_dict())
    return module


def model(settings: Settings) -> flow.Model:
    """Transformer and connectors as they stand."""
    made = flow.Model()
    made.transformer, made.connectors = trained(settings, "transformer"), trained(settings, "connectors")
    return made


def vaes(settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Both VAEs with the statistics of their latents; these are measured once and kept."""
    pair = trained(settings, "vae").to(settings.device), trained(settings, "audio_vae").to(settings.device)
    path = settings.folder / "statistics.safetensors"
    if path.is_file():
        kept = load_file(path)
        for name, vae in zip(("vae", "audio_vae"), pair, strict=True):
            vae.latents_mean.copy_(kept[f"{name}.mean"])
            vae.latents_std.copy_(kept[f"{name}.std"])
        return pair
    dataset.set_statistics(pair[0], seed=settings.seed)
    audio_vae.set_statistics(pair[1], seed=settings.seed)
    kept = {}
    for name, vae in zip(("vae", "audio_vae"), pair, strict=True):
        kept |= {f"{name}.mean": vae.latents_mean, f"{name}.std": vae.latents_std}
    export.write(path, kept)
    return pair


def gemma(settings: Settings) -> Path:
    folder = settings.folder / sizes.FILES["gemma"]
    return folder if (folder / "processor_config.json").is_file() else write_gemma(folder, settings.seed)


def encoded(settings: Settings, name: str, **changes: object) -> list[dataset.Clip]:
    """The clips of that kind; more of them as long as their budget lasts."""
    share = {"clips": 1.0, "dolly_in": 0.05, "static": 0.05}[name]
    until = time.monotonic() + settings.seconds("clips") * share
    count = max(dataset.SHARD, round(settings.clips * share))
    plan = dataset.Plan(name, count, seed=settings.seed, **changes)
    pair = vaes(settings)
    dataset.build(settings.folder, plan, *pair, until=lambda: time.monotonic() > until)
    return dataset.load(settings.folder, name)


def stage(settings: Settings, name: str) -> Stage | None:
    """Runs one stage to the end of its budget."""
    folder, options = settings.folder, settings.options(name) if name != "clips" else None
    if name == "vae":
        return video_vae.train(folder, options, earlier(settings, "vae"), settings.keep_latents)
    if name == "audio_vae":
        return audio_vae.train_vae(folder, options, earlier(settings, "audio_vae"))
    if name == "vocoder":
        return audio_vae.train_vocoder(folder, options, earlier(settings, "vocoder"))
    if name == "clips":
        encoded(settings, name)
        return None
    clips = dataset.load(folder, "clips") or encoded(settings, "clips")
    if name == "transformer":
        begin = model(settings) if settings.earlier is not None else None
        return flow.train(folder, options, clips, gemma(settings), begin)
    if name == "distilled":
        return adapters.train_distilled(folder, options, model(settings), clips, gemma(settings))
    if name == "upscaler":
        return adapters.train_upscaler(folder, options, clips, vaes(settings)[0], earlier(settings, "upscaler"))
    changes = {"zoom": (1.2, 1.5)} if name == "dolly_in" else {"still": True}
    own = encoded(settings, name, large=0.0, long=0, **changes)
    return adapters.train_camera(name, folder, options, model(settings), own, gemma(settings))


def write_set(settings: Settings, to: Path) -> Path:
    """Exports what there is, trained or not, as the original files, with how far each stage came. Returns `to`."""
    to.mkdir(parents=True, exist_ok=True)
    modules = {part: trained(settings, part) for part in PARTS}
    modules["vae"], modules["audio_vae"] = vaes(settings)
    export.export_checkpoint(to / sizes.FILES["checkpoint"], modules)
    export.export_upscaler(to / sizes.FILES["upscaler"], trained(settings, "upscaler"))
    for name in ("distilled", "dolly_in", "static"):
        lora = adapters.Lora(
            modules["transformer"],
            sizes.LORA_RANK if name == "distilled" else sizes.CAMERA_RANK,
            blocks_only=name != "distilled",
        )
        export.export_lora(to / sizes.FILES[name], lora.factors(state(settings.folder, name) or lora.state_dict()))
    write_gemma(to / sizes.FILES["gemma"], settings.seed)
    (to / "progress.json").write_text(json.dumps(progress(settings), indent=1) + "\n", encoding="utf-8")
    return to


def progress(settings: Settings) -> dict[str, dict[str, float]]:
    """By stage: steps made, seconds spent, and the means of the last line of its log."""
    found: dict[str, dict[str, float]] = {}
    log = settings.folder / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        name = entry.pop("stage")
        found[name] = {k: round(v, 5) for k, v in entry.items()}
    return found


def run(settings: Settings, stages: tuple[str, ...] = tuple(BUDGETS)) -> None:
    settings.folder.mkdir(parents=True, exist_ok=True)
    for name in stages:
        begun = time.monotonic()
        stage(settings, name)
        sys.stdout.write(f"{name}: done, {time.monotonic() - begun:.0f} s in this run\n")
        sys.stdout.flush()
