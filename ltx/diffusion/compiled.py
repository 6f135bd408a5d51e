"""Regional torch.compile: one compiled block stands for all blocks, and serves all sizes.

Each form of the block is compiled when it first runs. Its form is which rows it has, which streams and texts they read,
and whether a stream has one noise level or several. Sizes do not belong to the form, because the inputs are marked with
the axes that vary. Weights, sigmas and the strengths of LoRAs do not belong to it either, because they are tensors.
Only what groups of tokens see of each other (`View`) holds sizes as numbers: with such a reference, a second size is
compiled once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from .block import adopt
from .modulation import Modulations, Rotary
from .sight import View

FORMS = 64  # forms that are kept: with and without audio, STG passes, the last block, noise levels, numbers of LoRAs
TOKENS = 1  # the axis of the tokens in the inputs of a block
PLACE = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable: the folder of compiled code, Triton's included


def compile_blocks(model: LTX2VideoTransformer3DModel, on: bool = True, folder: Path | None = None) -> None:
    """Compiles the repeated block with torch.compile, once for all blocks, when it first runs. `on` False undoes it.

    folder: where the code is kept for later runs, as `keep_code` says; None leaves that to torch.
    """
    adopt(model)
    if on:
        if folder is not None:
            keep_code(folder)
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6's name
        setattr(config, limit, max(getattr(config, limit), FORMS))
    for block in model.transformer_blocks:
        if not on:
            block._compiled_call_impl = None
        elif not is_compiled(block):
            block.compile()
            block._compiled_call_impl = _with_any_lengths(block._compiled_call_impl)


def keep_code(folder: Path) -> None:
    """Lets torch keep compiled code in `folder`, where later processes find it. Its own place is the folder for
    temporary files, which a restart of the machine empties.

    A place that the user has named in PLACE stays. If the folder cannot be written, torch's own place stays, too.
    """
    from torch._inductor.runtime.runtime_utils import default_cache_dir  # it loads the compiler

    if os.environ.get(PLACE, default_cache_dir()) != default_cache_dir():  # torch sets the variable itself
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is executed
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ[PLACE] = str(folder.absolute())


def is_compiled(block: nn.Module) -> bool:
    """Whether `nn.Module.compile` was called on it."""
    return block._compiled_call_impl is not None


def with_any_sizes(levels: Modulations, positions: Rotary, views: Iterable[View]) -> None:
    """Marks the sizes that may vary in what all compiled blocks of a step share: numbers of noise levels, of tokens and
    of positions."""
    for stream in (levels.video, levels.audio):
        _vary(stream.own, 0)
        _vary(stream.across, 0)
        if stream.places is not None:
            _vary(stream.places.index, 0)
    for pair in (positions.video, positions.audio, positions.cross_video, positions.cross_audio):
        for embedding in pair:  # split ones are [G, 1, heads, half], others [1, N, D]
            _vary(embedding, 0 if embedding.ndim == 4 else TOKENS)
    if positions.hearing is not None:
        _vary(positions.hearing, TOKENS)
    for view in views:
        if view.bias is not None:
            _vary(view.bias, 3)


def _with_any_lengths(run: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled block whose streams and texts may have any length. It takes the inputs of `Block`."""

    def call(*inputs: Any) -> Any:
        for tensor in _tensors(inputs):
            _vary(tensor, TOKENS)
        return run(*inputs)

    return call


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples: of a block's inputs the streams, the texts, and the texts' keys and values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)


def _vary(tensor: Tensor, axis: int) -> None:
    torch._dynamo.maybe_mark_dynamic(tensor, axis)


@contextmanager
def telling(on_compile: Callable[[], None]) -> Iterator[None]:
    """Calls `on_compile` within `with` whenever torch begins to compile something."""
    handler = torch._dynamo.callback.callback_handler

    def begin(*_: object) -> None:  # torch gives arguments since 2.8
        on_compile()

    handler.register_start_callback(begin)
    try:
        yield
    finally:
        with suppress(ValueError):  # torch._dynamo.reset() removes it, too
            handler.remove_start_callback(begin)
