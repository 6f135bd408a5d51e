"""The passes of a step: the inputs of each pass, and how the passes run through the transformer's blocks together.

They avoid needless work. An STG pass begins as a copy of another pass, at the first block where the two differ. A
stream is left out if nothing reads its result. And a step may reuse the result of the blocks from an earlier step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from ..computing import CUDA
from ..devices import free_on_gpu
from .block import Pair, Rows, Texts
from .compiled import is_compiled, with_any_sizes
from .conditioning import TEXT_LENGTH
from .leading import Leading
from .modulation import Modulation, Modulations, Rotary, ada
from .sight import View
from .tokens import Tokens, joined

GPU_SHARE = 0.5  # of the free memory; the rest is for fragmentation and for the other tensors of the step
CPU_CACHE = 32e6  # bytes
TEXT_SHARE, TEXT_LEAST = 1 / 8, 64e6  # of the model's bytes, and bytes: what kept texts may take
State = tuple[Tensor, Tensor | None]
"""A pass between two blocks: video [1, N, D] and its sounds [S, T, D'], or None if nothing reads the audio."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Passes that went through a block together. rows: their numbers; video [R, N, D], audio [R', T, D'] of the
    first of them, each with S rows of it. The next block takes these tensors as they are if the passes are the same."""

    rows: tuple[int, ...]
    video: Tensor
    audio: Tensor | None
    sounds: int = 1

    @classmethod
    def of(cls, rows: Sequence[int], state: Mapping[int, State]) -> Batch:
        videos, audios = zip(*(state[row] for row in rows), strict=True)
        heard = [audio for audio in audios if audio is not None]
        return cls(tuple(rows), joined(videos, 0), joined(heard, 0) if heard else None, len(heard[0]) if heard else 1)

    def states(self) -> dict[int, State]:
        """The state of each pass, as views."""
        audio = () if self.audio is None else self.audio.split(self.sounds)
        return dict(zip(self.rows, zip_longest(self.video.split(1), audio), strict=True))


class Led(NamedTuple):
    """What NAG leads the attention to a text away from: the negative contexts of video and audio, [1, tokens, D]; None
    for a stream that is not led."""

    nag: Leading
    video: Tensor | None
    audio: Tensor | None


class Alone(NamedTuple):
    """The sound without its reference, for the pass that does not hear it. length: of its tokens. positions, levels: of
    both streams."""

    length: int
    positions: Rotary
    levels: Modulations


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward of the transformer. video_context, audio_context: its text contexts, [1, tokens, D].

    perturbed, perturbed_audio: blocks whose video or audio self-attention is replaced by its value projection (STG
    pass). isolated: whether the attention between the streams is left out (modality pass). led: for NAG. alone: whether
    the sound of the reference is left out.
    """

    video_context: Tensor
    audio_context: Tensor
    perturbed: tuple[int, ...] = ()
    perturbed_audio: tuple[int, ...] = ()
    isolated: bool = False
    led: Led | None = None
    alone: bool = False

    @property
    def contexts(self) -> tuple[Tensor, Tensor]:
        return self.video_context, self.audio_context

    @property
    def away(self) -> tuple[Tensor | None, Tensor | None]:
        """For both streams, the context that its attention is led away from."""
        return (None, None) if self.led is None else (self.led.video, self.led.audio)

    def same_text(self, other: Pass) -> bool:
        return self.video_context is other.video_context and self.audio_context is other.audio_context

    def departs(self, leader: Pass) -> int | None:
        """The first block in which this pass differs from `leader`; None if their inputs differ already."""
        if not self.same_text(leader) or (self.isolated, self.alone) != (leader.isolated, leader.alone):
            return None
        own = {*self.perturbed} ^ {*leader.perturbed}, {*self.perturbed_audio} ^ {*leader.perturbed_audio}
        return min(own[0] | own[1], default=None)


@dataclass(eq=False)
class Contexts:
    """The texts that blocks read: two of them in one tensor, which is made once a step and not in each block."""

    _stacks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def stacked(self, texts: Sequence[Tensor]) -> Tensor:
        key = tuple(map(id, texts))
        if key not in self._stacks:
            self._stacks[key] = joined(texts, 0)
        return self._stacks[key]


@dataclass(frozen=True)
class Order:
    """How passes share a batch. rows: the numbers of the passes in the batch's order. follows: for each pass that
    begins as a copy, the pass that it copies and the first block where they differ."""

    rows: tuple[int, ...]
    follows: Mapping[int, tuple[int, int]]

    @classmethod
    def of(cls, passes: Sequence[Pass]) -> Order:
        """Orders the passes. Isolated passes come last, because their rows may have no audio, and passes of the first
        one's text beside them, because rows of one text stand together."""

        def rank(number: int) -> tuple[bool, bool]:
            return passes[number].isolated, passes[number].same_text(passes[0])

        rows = tuple(sorted(range(len(passes)), key=rank))
        follows: dict[int, tuple[int, int]] = {}
        for place, number in enumerate(rows):
            for leader in rows[:place]:
                if leader not in follows and (block := passes[number].departs(passes[leader])) is not None:
                    follows[number] = leader, block
                    break
        return cls(rows, follows)

    def after_first_block(self, state: Mapping[int, State]) -> dict[int, State]:
        """The state of every pass after the first block. A pass that differs only later has the state of its leader."""
        leader = {row: leader for row, (leader, block) in self.follows.items() if block}
        return {row: state[leader.get(row, row)] for row in self.rows}


@dataclass(eq=False)
class Reuse:
    """First-block cache. If the first block changes the video nearly as it did in the last full step, the other blocks
    do not run, and their change of that step is reused. An object holds the state of one stage.

    threshold: it is reused below this ratio, mean |difference of the two changes| / mean |change|. last: the sigma of
    the last step, which always runs all blocks. skipped: the number of steps that reused a change.
    """

    threshold: float
    last: float = 0.0
    skipped: int = 0
    _change: Tensor | None = None  # the first block's change in the last full step
    _rests: dict[int, State] = field(default_factory=dict)  # by pass: the other blocks' change in that step

    def spares(self, change: Tensor, passes: int) -> bool:
        """Whether a step with this number of passes can reuse the other blocks' change. change: its first block's."""
        if self._change is not None and all(number in self._rests for number in range(passes)):
            near = (change - self._change).abs().mean() / self._change.abs().mean()
            # Asked this way round, a rehearsal, which knows no numbers, runs all blocks beside what is remembered.
            if not bool(~(near < self.threshold)):
                self.skipped += 1
                return True
        self._change = change
        return False

    def finished(self, heads: Mapping[int, State]) -> dict[int, State]:
        """The states after the last block: those after the first block plus the remembered change."""
        return {row: _plus(head, self._rests[row]) for row, head in heads.items()}

    def remember(self, heads: Mapping[int, State], states: Mapping[int, State]) -> None:
        """Keeps the change between the states after the first block and those after the last one."""
        self._rests = {row: _minus(states[row], heads[row]) for row in states}


def working_set(model: LTX2VideoTransformer3DModel, tokens: int) -> float:
    """Bytes of activations that a row of `tokens` needs in a block beside its state, at the peak. That is the hidden
    layer of the feed-forward before and after its activation, each four tensors of the model's width, and the tensors
    around it."""
    width = model.config.num_attention_heads * model.config.attention_head_dim
    return 12.0 * tokens * width * model.proj_in.weight.element_size()


def batch_room(device: torch.device, free: float | None = None) -> float:
    """Bytes that the passes of a step may take as one batch: a share of the free memory of a GPU by NVIDIA or AMD, or
    elsewhere the size of a CPU's caches. Measured on a CPU, a batch of four is twice as fast if it stays in the cache,
    and 7 % slower if it does not.

    free: bytes that are free on the device beside the weights, by default measured now.
    """
    if device.type != CUDA:
        return CPU_CACHE
    return GPU_SHARE * (free_on_gpu(device) if free is None else free)


def run_as_batch(model: LTX2VideoTransformer3DModel, tokens: int, passes: int, room: float) -> bool:
    """Whether so many passes of `tokens` run as one batch. room: see `batch_room`. The denoiser and the forecast both
    ask here."""
    return passes * working_set(model, tokens) < room


def beside_passes(model: LTX2VideoTransformer3DModel, tokens: int, passes: int, room: float) -> float:
    """Bytes of `room` that a step leaves for the kept keys and values of texts."""
    return room - passes * working_set(model, tokens) if run_as_batch(model, tokens, passes, room) else room


def batch_memory(model: LTX2VideoTransformer3DModel, tokens: int, passes: int) -> int:
    """Bytes that must be free on a GPU so that so many passes of `tokens` run as one batch."""
    return int(passes * working_set(model, tokens) / GPU_SHARE) + 1


def static_texts(model: LTX2VideoTransformer3DModel) -> bool:
    """Whether the keys and values of a text are the same in every step, because the noise does not modulate them."""
    return getattr(model, "prompt_adaln", None) is None


def text_limit(model: LTX2VideoTransformer3DModel) -> float:
    """Bytes that the kept keys and values of texts may take. It depends on the model alone, so that a forecast can
    count them. In LTX-2.5, two texts take a seventeenth of the model in bfloat16, and an eighth of it in float8."""
    return max(TEXT_LEAST, TEXT_SHARE * sum(parameter.nbytes for parameter in model.parameters()))


def kept_texts(model: LTX2VideoTransformer3DModel, texts: int) -> int:
    """Bytes that the kept keys and values of `texts` texts take in all blocks, if there is room for all that may be
    kept."""
    if not static_texts(model):
        return 0
    blocks = model.transformer_blocks
    width = blocks[0].attn2.to_k.out_features + blocks[0].audio_attn2.to_k.out_features
    size = texts * len(blocks) * 2 * TEXT_LENGTH * width * model.proj_in.weight.element_size()
    return int(min(size, text_limit(model)))


@dataclass(eq=False)
class KeptTexts:
    """Keys and values of texts, for a model that computes the same ones in every step: they are computed once a run.

    limit: bytes; what goes beyond it is computed in every step. An object holds the state of one stage.
    """

    limit: float
    _kept: dict[tuple[object, ...], Texts] = field(default_factory=dict)
    _size: int = 0

    def get(self, key: tuple[object, ...], heard: bool) -> Texts | None:
        """heard: whether those of the audio are needed, too."""
        found = self._kept.get(key)
        return None if found is None or (heard and found[1] is None) else found

    def put(self, key: tuple[object, ...], texts: Texts) -> None:
        size = _bytes(texts) - _bytes(self._kept.get(key, ()))
        if self._size + size <= self.limit:
            self._kept[key] = texts
            self._size += size


def _bytes(texts: Iterable[Pair | None]) -> int:
    return sum(tensor.nbytes for pair in texts if pair is not None for tensor in pair)


# long: what a step of each kind of model needs, by name
def velocities(
    model: LTX2VideoTransformer3DModel,
    x: Tokens,
    passes: Sequence[Pass],
    positions: Rotary,
    levels: Modulations,
    *,
    audio_read: bool = True,
    batched: bool = True,
    reuse: Reuse | None = None,
    marked: Tensor | None = None,
    texts: KeptTexts | None = None,
    views: tuple[View, ...] = (),
    alone: Alone | None = None,
    on_block: Callable[[], None] | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Tokens, video [1, N, C] and sounds [S, T, C], → the velocities of each pass, video [1, N, C] and audio [1, T, C]
    of the first sound, in the model's dtype. What the picture hears of each sound, `positions` says.

    audio_read: whether audio velocities are needed; otherwise they are None, and work that only serves them is left
    out. batched: whether the passes run as one batch, or else one after the other through each block. marked: [1, N,
    1], 1 for the tokens that get the model's keyframe vector, if it has one. texts: where keys and values of the texts
    are kept. views: as for `Block`. alone: what a pass that is alone hears; it runs beside the batch, because its audio
    is shorter. on_block is called before each block and may raise to stop.
    """
    blocks, order = model.transformer_blocks, Order.of(passes)
    if is_compiled(blocks[0]):
        with_any_sizes(levels, positions, views)
        if alone is not None:
            with_any_sizes(alone.levels, alone.positions, views)
    video_in, audio_in = model.proj_in(x.video), model.audio_proj_in(x.audio)
    vector = getattr(model, "keyframes_abs_pos_embedding", None)
    if vector is not None and marked is not None:
        video_in = video_in + marked.to(video_in.dtype) * vector.to(video_in)

    def heard(row: int) -> Tensor | None:
        if passes[row].isolated and not audio_read:
            return None
        # A view into the longer tensor would have strides for which compiled blocks have no form.
        return model.audio_proj_in(x.audio[:, : alone.length]) if passes[row].alone else audio_in

    state: dict[int, State] = {row: (video_in, heard(row)) for row in order.rows if row not in order.follows}
    heads: dict[int, State] = {}
    batches: dict[tuple[int, ...], Batch] = {}
    contexts = Contexts()
    for number, block in enumerate(blocks):
        if on_block is not None:
            on_block()
        state |= {row: state[leader] for row, (leader, first) in order.follows.items() if first == number}
        rows = [row for row in order.rows if row in state]
        last = number == len(blocks) - 1
        apart = [(row,) for row in rows if passes[row].alone or not batched]
        groups = [group for group in (tuple(row for row in rows if (row,) not in apart), *apart) if group]
        batches = {group: batches.get(group) or Batch.of(group, state) for group in groups}
        for group, batch in batches.items():
            places = (alone.positions, alone.levels) if passes[group[0]].alone else (positions, levels)
            after = _run(block, number, batch, passes, contexts, *places, audio_read or not last, texts, views)
            batches[group] = after
            state |= after.states()
        if number == 0 and reuse is not None:
            heads = order.after_first_block(state)
            if reuse.spares(heads[0][0] - video_in, len(passes)):
                state = reuse.finished(heads)
                break
    else:
        if reuse is not None:
            reuse.remember(heads, state)
    results = []
    for row in range(len(passes)):
        video, audio = state[row]
        own = alone.levels if passes[row].alone else levels
        video = _project(video, own.video, model.norm_out, model.scale_shift_table, model.proj_out)
        if audio_read:
            audio = _project(
                audio[:1], own.audio, model.audio_norm_out, model.audio_scale_shift_table, model.audio_proj_out
            )
        results.append((video, audio if audio_read else None))
    return results


def _run(
    block: nn.Module,
    number: int,
    batch: Batch,
    passes: Sequence[Pass],
    contexts: Contexts,
    positions: Rotary,
    levels: Modulations,
    audio_read: bool,
    kept: KeptTexts | None,
    views: tuple[View, ...],
) -> Batch:
    """Runs one block on a batch → the same passes after it."""
    heard = 0 if batch.audio is None else len(batch.audio) // batch.sounds
    running = [passes[row] for row in batch.rows]
    read = [each.video_context for each in running], [each.audio_context for each in running]
    away = ([each.away[stream] for each in running if each.away[stream] is not None] for stream in (0, 1))
    texts = tuple(
        list({id(context): context for context in (*stream, *others)}.values())
        for stream, others in zip(read, away, strict=True)
    )
    second, second_audio = ([context is not stream[0] for context in stream] for stream in read)
    key = (number, *(tuple(map(id, text)) for text in texts))
    known = None if kept is None else kept.get(key, heard > 0)
    video, audio, pairs = block(
        batch.video,
        batch.audio,
        contexts.stacked(texts[0]),
        contexts.stacked(texts[1]) if heard else None,
        Rows(
            tuple(second),
            tuple(passes[row].isolated for row in batch.rows),
            tuple(number in passes[row].perturbed for row in batch.rows),
            tuple(other for other in second_audio[:heard] for _ in range(batch.sounds)),
            tuple(number in passes[row].perturbed_audio for row in batch.rows[:heard] for _ in range(batch.sounds)),
            *(_led(stream, running, texts[stream]) for stream in (0, 1)),
        ),
        levels,
        positions,
        audio_read,
        known,
        kept is not None and known is None,
        views,
        next((each.led.nag for each in running if each.led is not None), None),
    )
    if pairs is not None:
        kept.put(key, pairs)
    return Batch(batch.rows, video, audio, batch.sounds)


def _led(stream: int, passes: Sequence[Pass], texts: Sequence[Tensor]) -> tuple[bool, ...]:
    """For each of these contexts of a stream, whether the passes that read it are led away from the other one. There is
    no other one if both prompts are the same, and leading would change nothing."""
    led = [each.contexts[stream] for each in passes if each.away[stream] is not None]
    return tuple(len(texts) > 1 and any(text is own for own in led) for text in texts)


def _plus(a: State, b: State) -> State:
    return a[0] + b[0], None if a[1] is None else a[1] + b[1]


def _minus(a: State, b: State) -> State:
    return a[0] - b[0], None if a[1] is None else a[1] - b[1]


def _project(x: Tensor, levels: Modulation, norm: nn.Module, table: Tensor, projection: nn.Module) -> Tensor:
    return projection(ada(table.to(levels.out), levels.out[:, None], levels.places).modulate(norm(x), 0, 1))
