"""What every stage of the training shares: its clock, its learning rate, its log, and a state that survives a kill.

A state is one safetensors file, replaced in one step: the weights, their running average, the optimizer's moments, and
as metadata the step, the seconds spent and the random generator. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .muon import Muon, quick

SAVE_SECONDS, LOG_SECONDS = 60.0, 15.0


@dataclass
class Options:
    """Of a stage. seconds: its budget over all runs; rate: the highest learning rate; clip: of the gradient's norm."""

    seconds: float = 3600.0
    rate: float = 4e-4
    floor: float = 0.02  # of `rate`, at the end
    warmup: int = 100
    decay: float = 0.5  # share of the budget in which the rate falls
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    average: float = 0.998  # of the weights, per step
    seed: int = 0
    device: str = "cpu"


@dataclass
class Stage:
    """One model in training. `steps` yields until the budget is spent; `update` makes one step of the optimizer."""

    name: str
    module: nn.Module
    folder: Path
    options: Options
    plain: tuple[str, ...] = ()  # words in the names of matrices that are no map between features: AdamW's
    extra: dict[str, Tensor] = field(default_factory=dict)  # tensors that are kept beside the weights

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{self.name}.state.safetensors"
        self.trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        o = self.options
        matrix = [n for n, p in self.trained if p.ndim > 1 and not any(word in n for word in self.plain)]
        self.order = [*matrix, *(n for n, _ in self.trained if n not in matrix)]  # as the optimizer counts them
        named = dict(self.trained)
        self.optimizer = Muon(
            [named[n] for n in matrix], [named[n] for n in self.order[len(matrix) :]], o.rate, betas=o.betas
        )
        self.mean = {n: p.detach().clone() for n, p in self.trained}
        self.step, self.spent = 0, 0.0
        self.sums: dict[str, list[float]] = {}
        self.resume()

    @property
    def rng(self) -> np.random.Generator:
        """The generator of the current step: a resumed run draws what it would have drawn."""
        return np.random.default_rng((self.options.seed, self.step))

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.options.seconds)

    def steps(self) -> Iterator[int]:
        self.module.train()
        begun = saved = logged = time.monotonic()
        before = self.spent
        while self.share < 1:
            torch.manual_seed(self.options.seed * 1_000_003 + self.step)
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.spent = before + now - begun
            if now - logged > LOG_SECONDS:
                self.log()
                logged = now
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.log()
        self.save()
        self.module.eval()

    def update(self, loss: Tensor, **shown: float) -> None:
        o = self.options
        falling = max(0.0, (self.share - 1 + o.decay) / o.decay) if o.decay else 0.0
        rate = o.rate * min(1.0, (self.step + 1) / o.warmup)
        rate *= o.floor + (1 - o.floor) * 0.5 * (1 + math.cos(math.pi * falling))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_([p for _, p in self.trained], o.clip))
        if math.isfinite(norm):
            self.optimizer.step()
            keep = min(o.average, (self.step + 1) / (self.step + 10))
            with torch.no_grad():
                for name, p in self.trained:
                    self.mean[name].lerp_(p, 1 - keep)
        for key, value in {"loss": float(loss.detach()), "norm": norm, "rate": rate, **shown}.items():
            self.sums.setdefault(key, []).append(value)

    def log(self) -> None:
        if not self.sums:
            return
        means = {k: sum(v) / len(v) for k, v in self.sums.items()}
        self.sums = {}
        line = {"stage": self.name, "step": self.step, "seconds": round(self.spent), **means}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{k} {v:.5g}" for k, v in means.items())
        sys.stdout.write(f"{self.name} {self.share:6.1%}  step {self.step}  {shown}\n")
        sys.stdout.flush()

    def save(self) -> None:
        tensors = {f"weights.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"mean.{k}": v for k, v in self.mean.items()} | {f"extra.{k}": v for k, v in self.extra.items()}
        moments = self.optimizer.state_dict()["state"]
        for number, name in enumerate(self.order):
            state = moments.get(number, {})
            tensors |= {f"optimizer.{name}.{k}": v for k, v in state.items()}
        meta = {"step": str(self.step), "spent": str(self.spent)}
        write(self.path, tensors, meta)

    def resume(self) -> None:
        if not self.path.is_file():
            return
        with safe_open(self.path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = file.metadata()
        self.module.load_state_dict(_under(tensors, "weights."))
        self.mean = _under(tensors, "mean.")
        self.extra |= _under(tensors, "extra.")
        state = self.optimizer.state_dict()
        for number, name in enumerate(self.order):
            if own := _under(tensors, f"optimizer.{name}."):
                state["state"][number] = own
        self.optimizer.load_state_dict(state)
        self.step, self.spent = int(meta["step"]), float(meta["spent"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def write(path: Path, tensors: dict[str, Tensor], meta: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all."""
    part = path.with_suffix(".part")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, metadata=meta)
    os.replace(part, path)


def fast(device: str) -> torch.autocast:
    """Within, the device computes in `quick`'s type."""
    return torch.autocast(device, torch.bfloat16, enabled=quick(device) == torch.bfloat16)


def read_average(folder: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights out of a stage's state."""
    with safe_open(folder / f"{name}.state.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return _under(tensors, "weights.") | _under(tensors, "mean.")


Batch = Callable[[np.random.Generator], Tensor]
