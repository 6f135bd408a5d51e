"""Parts that no run changes, loaded once for many runs on the same tiny files: half of a small run is loading."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from a2v.ltx import encoding, job, sampling
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.prompt.gemma import Gemma
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import Checkpoint
from torch import nn

PARTS = (
    *("inspect", "blueprint", "connectors", "video_encoder", "video_decoder", "video_statistics"),
    *("audio_encoder", "audio_decoder", "vocoder"),
)
"""Methods of Checkpoint."""


def once(load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A method of Checkpoint that keeps what it loaded, by the files and the arguments."""
    kept: dict[tuple[Any, ...], nn.Module] = {}

    def loaded(checkpoint: Checkpoint, *arguments: Any, **named: Any) -> nn.Module:
        key = (checkpoint.path, repr(checkpoint.files), *arguments, *sorted(named.items()))
        if key not in kept:
            kept[key] = load(checkpoint, *arguments, **named)
        return kept[key]

    return loaded


def copied(load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same for the transformer, into which LoRAs are merged: each run gets a copy of what was loaded."""
    loaded = once(load)
    return lambda *arguments, **named: copy.deepcopy(loaded(*arguments, **named))


@contextmanager
def loaded_once(*, texts: bool = False) -> Iterator[None]:
    """Meanwhile each part is loaded once. texts: the text encoder too, and each text is encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sampling, job):
            patch.setattr(module, "load_upscaler", functools.cache(module.load_upscaler))
        for part in PARTS:
            patch.setattr(Checkpoint, part, once(getattr(Checkpoint, part)))
        patch.setattr(Checkpoint, "transformer", copied(Checkpoint.transformer))
        if texts:
            patch.setattr(encoding, "load_gemma", functools.cache(encoding.load_gemma))
            patch.setattr(encoding, "encode_text", encoded_once(encoding.encode_text))
        yield


def encoded_once(encode: Callable[..., TextContext]) -> Callable[..., TextContext]:
    known: dict[str, tuple[TextContext, dict[str, Any]]] = {}

    def encode_text(gemma: Gemma, connectors: nn.Module, words: str, trace: Recorder) -> TextContext:
        if words not in known:
            recorder = Recorder()
            known[words] = encode(gemma, connectors, words, trace=recorder), recorder.tensors
        context, traced = known[words]
        for name, tensor in traced.items():
            trace(name, tensor)
        return context

    return encode_text
