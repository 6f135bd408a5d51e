"""The work that both sides do: sizes, guidance and inputs made from a seed, and a counter of block runs. Only torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

GUIDANCE = {"cfg_scale": 3.0, "stg_scale": 1.0, "rescale_scale": 0.85, "modality_scale": 3.0}
TEXT = 1024  # tokens of a context
WHOLE = (1.0, 0.0)
"""Sigmas of one step all the way: what it leaves is the guided x0 itself, so that numbers compared are the model's."""
OFF = dict.fromkeys(
    ("use_restart_sampling", "preprocess_audio", "enable_prompt_expansion", "enable_safety_checker"), False
)


@dataclass(frozen=True)
class Clip:
    frames: int
    height: int
    width: int
    fps: int = 24

    @property
    def tokens(self) -> int:
        """Video tokens at this size."""
        return ((self.frames - 1) // 8 + 1) * (self.height // 32) * (self.width // 32)

    @property
    def plain(self) -> list[int]:
        return [self.frames, self.height, self.width, self.fps]


def stg_block(layers: int) -> int:
    """28 in the published 48; the same place in fewer."""
    return layers * 28 // 48


def request(clip: Clip, steps: int, **more: Any) -> dict[str, Any]:
    """The official pipeline's request in the endpoint's names; x264 as its file writer has it."""
    return {
        "prompt": "a woman speaks to the camera in a room",
        "negative_prompt": "text, static",
        "match_audio_length": False,
        "num_frames": clip.frames,
        "video_size": {"width": clip.width, "height": clip.height},
        "fps": clip.fps,
        "num_inference_steps": steps,
        "video_cfg_scale": GUIDANCE["cfg_scale"],
        "video_stg_scale": GUIDANCE["stg_scale"],
        "video_rescaling_scale": GUIDANCE["rescale_scale"],
        "video_modality_scale": GUIDANCE["modality_scale"],
        "scheduler": "ltx2",
        "distill_lora_first_pass_scale": 0.0,
        "distill_lora_second_pass_scale": 1.0,
        "seed": 1,
        "video_quality": "medium",
        **OFF,
        **more,
    }


def contexts(video: int, audio: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contexts of these widths: the positive prompt's for video and audio, then the negative one's."""
    generator = torch.Generator().manual_seed(2)
    widths = (video, audio, video, audio)
    return tuple(torch.randn(1, TEXT, width, generator=generator) for width in widths)


def sound(frames: int, fps: int = 24) -> Tensor:
    """Audio latent [1, 8, T, 16] of a clip, 25 a second."""
    return torch.randn(1, 8, round(frames / fps * 25), 16, generator=torch.Generator().manual_seed(3))


@dataclass
class Counter:
    """Counts block runs inside `with`: a call of a transformer block on one batch row.

    A block's own call and its video feed-forward's are counted apart, and the larger number is the count: an engine
    may run a block's parts without calling the block, but no run goes without the feed-forward.
    """

    blocks: Iterable[nn.Module]
    enabled: bool = True
    calls: dict[str, int] = field(default_factory=lambda: {"block": 0, "feed forward": 0})

    @property
    def runs(self) -> int:
        return max(self.calls.values())

    def __enter__(self) -> Counter:
        self._handles = []
        if self.enabled:
            for block in self.blocks:
                self._watch(block, "block")
                self._watch(block.ff, "feed forward")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: nn.Module, what: str) -> None:
        def seen(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.calls[what] += rows((*arguments, *named.values()))

        self._handles.append(module.register_forward_pre_hook(seen, with_kwargs=True))


def rows(arguments: tuple[Any, ...]) -> int:
    """Batch rows of the first tensor, or of the first argument that has one as `x`."""
    for argument in arguments:
        tensor = getattr(argument, "x", argument)
        if isinstance(tensor, Tensor):
            return tensor.shape[0]
    raise TypeError("no tensor among a block's arguments")
