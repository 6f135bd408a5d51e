"""The work of both sides: sizes, guidance, inputs from a seed, and a counter of block runs. It imports only torch."""

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
"""Sigmas of one step to 0. Its result is the guided x0 itself, so the comparison is one of the models."""
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
    """Block 28 of the published 48, or the block at the same place in a smaller model."""
    return layers * 28 // 48


def request(clip: Clip, steps: int, **more: Any) -> dict[str, Any]:
    """The official pipeline's request in the endpoint's names, with the x264 settings of its file writer."""
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
    """Random contexts of these widths: video and audio of the positive prompt, then of the negative prompt."""
    generator = torch.Generator().manual_seed(2)
    widths = (video, audio, video, audio)
    return tuple(torch.randn(1, TEXT, width, generator=generator) for width in widths)


def sound(frames: int, fps: int = 24) -> Tensor:
    """A random audio latent [1, 8, T, 16] for a clip, with 25 latents per second."""
    return torch.randn(1, 8, round(frames / fps * 25), 16, generator=torch.Generator().manual_seed(3))


@dataclass
class Counter:
    """Counts block runs inside `with`. A block run is a call of a transformer block on one batch row.

    The calls of a block and of its video feed-forward are counted separately, and the larger number is the result. An
    engine may run the parts of a block without calling the block, but each run includes the feed-forward.
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
        def count(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.calls[what] += rows((*arguments, *named.values()))

        self._handles.append(module.register_forward_pre_hook(count, with_kwargs=True))


def rows(arguments: tuple[Any, ...]) -> int:
    """Number of batch rows of the first tensor among the arguments, or of the first attribute `x` that is a tensor."""
    for argument in arguments:
        tensor = getattr(argument, "x", argument)
        if isinstance(tensor, Tensor):
            return tensor.shape[0]
    raise TypeError("no tensor among a block's arguments")
