"""Parts that no run changes, loaded once for many runs on the same tiny files: half of a small run is loading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from a2v.ltx import encoding, job, sampling
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.prompt.gemma import Gemma
from a2v.ltx.prompt.text import OnLayer
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import Checkpoint
from torch import nn

PARTS = (
    *("inspect", "blueprint", "connectors", "video_encoder", "video_decoder", "video_statistics"),
    *("audio_encoder", "audio_decoder", "vocoder"),
)
"""Methods of Checkpoint. The transformer, into which LoRAs are merged, is loaded for each run."""


def once(load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A method of Checkpoint that keeps what it loaded, by the files and the arguments."""
    kept: dict[tuple[Any, ...], nn.Module] = {}

    def loaded(checkpoint: Checkpoint, *arguments: Any, **named: Any) -> nn.Module:
        key = (checkpoint.path, repr(checkpoint.files), *arguments, *sorted(named.items()))
        if key not in kept:
            kept[key] = load(checkpoint, *arguments, **named)
        return kept[key]

    return loaded


@contextmanager
def loaded_once(*, texts: bool = False) -> Iterator[None]:
    """Meanwhile each part is loaded once. texts: the text encoder too, and each text is encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sampling, job):
            patch.setattr(module, "load_upscaler", functools.cache(module.load_upscaler))
        for part in PARTS:
            patch.setattr(Checkpoint, part, once(getattr(Checkpoint, part)))
        if texts:
            patch.setattr(encoding, "load_gemma", functools.cache(encoding.load_gemma))
            patch.setattr(encoding, "encode_texts", encoded_once(encoding.encode_texts))
        yield


def encoded_once(encode: Callable[..., Iterator[TextContext]]) -> Callable[..., Iterator[TextContext]]:
    known: dict[str, tuple[TextContext, dict[str, Any]]] = {}

    def encode_texts(
        gemma: Gemma, connectors: nn.Module, texts: list[str], traces: list[Recorder], on_layer: OnLayer
    ) -> Iterator[TextContext]:
        for words, trace in zip(texts, traces, strict=True):
            if words not in known:
                recorder = Recorder()
                (context,) = encode(gemma, connectors, [words], [recorder], on_layer)
                known[words] = context, recorder.tensors
            context, traced = known[words]
            for name, tensor in traced.items():
                trace(name, tensor)
            yield context

    return encode_texts
