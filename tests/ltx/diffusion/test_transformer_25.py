"""LTX-2.5's transformer: each of its switches against diffusers' own forward, fed by hand with the four corrections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import passes as passes_module
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.denoiser import GuidedDenoiser
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.passes import KeptTexts, Pass, Reuse, kept_texts, text_limit, working_set
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny import TinyFiles
from a2v.tests.tiny25 import NONE_OF_THEM, Tiny25Files, write_tiny25
from torch import Tensor, nn

from .one_pass import CASES, Case, by_diffusers, guided_step

VARIANTS: Mapping[str, dict[str, Any]] = {
    "published": {},
    "wider": {"layers": 2, "heads": 2, "head_dim": 32, "connector_layers": 1},
    "deeper, no switch": {"layers": 6, "heads": 8, "head_dim": 8, "switches": NONE_OF_THEM},
    "static text and a vector": {"switches": {**NONE_OF_THEM, "use_keyframes_abs_pos_embedding": True}},
    "audio without biases": {"switches": {"audio_ff_bias": False}},
    "as 2.3": {"switches": {}},
}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    sizes = {"vae_width": 4, "gemma_layers": 1, **VARIANTS[request.param]}  # of the other parts nothing is read
    return write_tiny25(tmp_path_factory.mktemp("tiny25"), seed=len(request.param), **sizes)


@pytest.fixture
def model(files: Tiny25Files) -> nn.Module:
    return load_checkpoint(files.transformer, **files.parts).transformer(torch.float32)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Its texts are not modulated by the noise."""
    files = write_tiny25(tmp_path_factory.mktemp("static"), switches=NONE_OF_THEM, vae_width=4)
    return load_checkpoint(files.transformer, **files.parts).transformer(torch.float32)


@pytest.mark.parametrize("case", ("equal sigmas", "first image", "stg twice", "isolated"))
def test_equals_diffusers_fed_by_hand(model: nn.Module, off: Callable, randn: Callable, case: str) -> None:
    run = Case(model, randn, **CASES[case])
    ours = run.ours()
    video, audio = by_diffusers(run)
    assert off(ours.video, video) < 1e-5
    assert off(ours.audio, audio) < 1e-5


def test_each_difference_shows(tmp_path: Path, off: Callable, randn: Callable) -> None:
    """Left out one at a time, each of the four corrections moves the video by far more than rounding."""
    files = write_tiny25(tmp_path)
    run = Case(load_checkpoint(files.transformer).transformer(torch.float32), randn, perturbed=(1,), image=0.4)
    theirs = {
        "own sigma at the gates": by_diffusers(run, gates=False),
        "audio perturbed too": by_diffusers(run, audio_stg=True),
        "frozen audio at the video's sigma": by_diffusers(run, sound=run.sigma),
        "no keyframe vector": by_diffusers(run, marked=False),
    }
    ours = run.ours()
    for name, (video, _) in theirs.items():
        assert off(ours.video, video) > 1e-3, name


@pytest.mark.soak  # test_transformer.py counts them of 2.3
@pytest.mark.parametrize("batched", [False, True])
def test_a_guided_step_runs_164_blocks_of_192(tmp_path: Path, randn: Callable, batched: bool) -> None:
    """As with 2.3: one call of a block on one row counts one."""
    files = write_tiny25(tmp_path, layers=48, heads=2, head_dim=16, connector_layers=1, vae_width=4)
    run = Case(load_checkpoint(files.transformer).transformer(torch.float32), randn)
    calls: list[tuple[int, int]] = []  # rows with video, rows with audio
    for block in run.model.transformer_blocks:
        block.register_forward_pre_hook(
            lambda _, args: calls.append((len(args[0]), 0 if args[1] is None else len(args[1])))
        )
    run.run(guided_step(run), batched=batched, audio_read=False)
    assert sum(rows for rows, _ in calls) == 3 * 48 + 20 == 164
    assert sum(rows for _, rows in calls) == 2 * 48 + 20  # the isolated pass has no sound to run


@pytest.mark.parametrize("batched", [False, True])
def test_texts_are_computed_once_a_run(static: nn.Module, randn: Callable, batched: bool) -> None:
    """The second step projects no text, and its numbers are the same to the bit as those of a step that does."""
    run = Case(static, randn, image=0.4)
    passes, kept, projected = guided_step(run), KeptTexts(1e9), []
    handles = [
        layer.register_forward_hook(lambda *_: projected.append(1))
        for block in static.transformer_blocks
        for layer in (block.attn2.to_k, block.attn2.to_v, block.audio_attn2.to_k, block.audio_attn2.to_v)
    ]
    run.run(passes, batched=batched, texts=kept)
    assert projected
    run.levels, run.sigma = run.levels / 2, run.sigma / 2
    projected.clear()
    ours = run.run(passes, batched=batched, texts=kept)
    assert not projected
    expected = run.run(passes, batched=batched)
    assert projected
    for handle in handles:
        handle.remove()
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one.video, other.video) and torch.equal(one.audio, other.audio)


def test_texts_are_kept_within_a_limit(static: nn.Module, randn: Callable) -> None:
    run = Case(static, randn)
    one = Pass(run.text, run.heard)
    kept = KeptTexts(1e9)
    run.run([one], texts=kept)
    pairs = [tensor for texts in kept._kept.values() for pair in texts for tensor in pair]
    blocks = len(static.transformer_blocks)
    assert len(pairs) == 4 * blocks
    each = sum(tensor.nbytes for tensor in pairs) // blocks
    narrow = KeptTexts(2 * each)
    run.run([one], texts=narrow)
    assert len(narrow._kept) == 2


def test_the_forecast_knows_what_is_kept(static: nn.Module, randn: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guided step, one pass after the other and as a batch: the isolated pass, which has no sound, and the
    perturbed one read the same text as the first."""
    run = Case(static, randn)
    passes = guided_step(run)
    expected = kept_texts(static, 2) * run.text.shape[1] // 1024
    for batched in (False, True):
        kept = KeptTexts(1e9)
        run.run(passes, batched=batched, texts=kept)
        pairs = [tensor for texts in kept._kept.values() for pair in texts for tensor in pair]
        assert kept._size == sum(tensor.nbytes for tensor in pairs)
        assert 0.75 * expected <= kept._size <= expected  # the negative text may be the video's alone
    monkeypatch.setattr(passes_module, "TEXT_LEAST", 1000.0)
    weights = sum(parameter.nbytes for parameter in static.parameters())
    assert kept_texts(static, 1000) == int(weights / 8) == int(text_limit(static))


def test_what_the_first_block_changes_decides_about_reuse(
    static: nn.Module, randn: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not its result, most of which is what it was given."""
    asked: list[Tensor] = []
    monkeypatch.setattr(Reuse, "spares", lambda self, change, passes: asked.append(change))
    states: list[tuple[Tensor, Tensor]] = []
    handle = static.transformer_blocks[0].register_forward_hook(lambda _, given, out: states.append((given[0], out[0])))
    run = Case(static, randn)
    run.run([Pass(run.text, run.heard)], reuse=Reuse(0.1))
    handle.remove()
    ((before, after),) = states
    assert torch.equal(asked[0], after - before) and not torch.equal(asked[0], after)


@pytest.mark.parametrize("device", ["cpu", "meta"], ids=["a CPU", "another device"])
def test_texts_are_kept_in_the_room_that_a_step_leaves(
    static: nn.Module, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """On a CPU the room is that of its caches, and says nothing about the memory. A GPU's is divided: the passes take
    theirs first, if they run as one batch."""
    monkeypatch.setattr(passes_module, "TEXT_LEAST", 1e6)
    widths = static.config.cross_attention_dim, static.config.audio_cross_attention_dim
    context = TextContext(*(torch.zeros(1, 4, width) for width in widths))
    sound = AudioCondition(torch.zeros(1, 8, 9, 16), 9, Fraction(24))
    conditions, steering = Conditions(context, sound, context), Steering(torch.tensor([1.0, 0.0]), Guidance(cfg=3.0))
    streams = conditions.streams(torch.zeros(1, 128, 2, 2, 2))
    placed = [replace(stream, latent=stream.latent.to(device)) for stream in streams]

    def limit(room: float, **given: float) -> float:
        return GuidedDenoiser(static, *placed, conditions, steering, room=room, **given).texts.limit

    taken = 2 * working_set(static, sum(stream.mask.shape[1] for stream in streams))
    assert text_limit(static) == 1e6 > taken > 10
    rooms = 1e12, taken + 10, taken - 10, 0.0
    assert [limit(room) for room in rooms] == ([1e6] * 4 if device == "cpu" else [1e6, 10, taken - 10, 0])
    assert limit(1e12, texts=7.0) == 7, "a forecast counts what is kept by itself"


def test_a_modulated_text_is_not_kept(tiny: TinyFiles) -> None:
    assert kept_texts(load_checkpoint(tiny.checkpoint).transformer(), 2) == 0


def test_kept_texts_count_their_bytes() -> None:
    """Also where the audio's are added to those of the video."""

    def pair(numbers: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(numbers), torch.zeros(numbers)

    for limit, heard in ((80, False), (88, True)):
        kept = KeptTexts(limit)
        for name in ("a", "b"):
            kept.put((name,), (pair(5), None))  # 40 bytes each
        kept.put(("a",), (pair(5), pair(1)))
        kept.put(("c",), (pair(2), None))
        assert all(kept.get((name,), False) for name in ("a", "b")) and kept.get(("c",), False) is None
        assert (kept.get(("a",), True) is not None) == heard
