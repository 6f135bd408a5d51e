"""Parts that no run changes, loaded once for many runs on the same tiny files, and the same media encoded once: that is
more than half of a small run."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from a2v.ltx import encoding, job, sampling, seen
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.prompt.gemma import Gemma
from a2v.ltx.prompt.text import OnLayer
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import Checkpoint
from torch import Tensor, nn

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


def twin(module: nn.Module) -> nn.Module:
    """The same modules with parameters and hooks of their own; what else they hold is shared."""
    made = module.__class__.__new__(module.__class__)
    own = {name: value.copy() for name, value in vars(module).items() if type(value) in (dict, OrderedDict)}
    made.__dict__ = {**vars(module), **own}
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else twin(child)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            made._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    return made


def copied(load: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """As `once`, for the transformer, into which LoRAs are merged: each run gets a twin of what was loaded."""
    loaded = once(load)
    return lambda *arguments, **named: twin(loaded(*arguments, **named))


def encoded(encode: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """A function of a VAE and pixels or a mel that keeps its results. Pieces of a clip are put together first."""
    known: dict[tuple[nn.Module, bytes], Tensor] = {}

    def once_encoded(vae: nn.Module, given: Any) -> Tensor:
        pieces = [given] if isinstance(given, Tensor) else list(given)
        key = (vae, b"".join(piece.numpy().tobytes() + repr(piece.shape).encode() for piece in pieces))
        if key not in known:
            known[key] = encode(vae, given if isinstance(given, Tensor) else iter(pieces))
        return known[key].clone()

    return once_encoded


@contextmanager
def loaded_once(*, texts: bool = False) -> Iterator[None]:
    """Meanwhile each part is loaded once, and the same picture, clip or sound encoded once. texts: the text encoder
    too, and each text is encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sampling, job):
            patch.setattr(module, "load_upscaler", functools.cache(module.load_upscaler))
        for part in PARTS:
            patch.setattr(Checkpoint, part, once(getattr(Checkpoint, part)))
        patch.setattr(Checkpoint, "transformer", copied(Checkpoint.transformer))
        for module, name in ((seen, "encode_image"), (seen, "encode_video"), (encoding, "encode_mel")):
            patch.setattr(module, name, encoded(getattr(module, name)))
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
