"""NAG: the formula, a step against diffusers with a processor of its own, batches, texts that are kept, and what is
neutral or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.leading import Leading
from a2v.ltx.diffusion.passes import KeptTexts, Led, Pass
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.errors import InputError
from a2v.ltx.nag import Nag
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny import TinyFiles
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .one_pass import Case, by_diffusers

NAG = Nag(scale=7.0, alpha=0.4, tau=1.5)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(tiny_any: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_any.checkpoint).transformer(torch.float32)


def by_the_paper(positive: Tensor, negative: Tensor, nag: Nag) -> Tensor:
    """Equations 5 to 7 of the paper, row by row in float64: [tokens, width]."""
    rows = []
    for own, other in zip(positive.double(), negative.double(), strict=True):
        far = own + (nag.scale - 1) * (own - other)
        ratio = float(far.abs().sum() / own.abs().sum())
        if ratio > nag.tau:
            far = far * nag.tau / ratio
        rows.append(nag.alpha * far + (1 - nag.alpha) * own)
    return torch.stack(rows)


@pytest.mark.parametrize("nag", [Nag(), NAG, Nag(3, 1, 1), Nag(2, 0.5, 10)], ids=str)
def test_the_formula(nag: Nag, off: Callable, randn: Callable) -> None:
    positive, negative = randn(2, 5, 3, 8), randn(2, 5, 3, 8)
    negative[0] = positive[0] * 0.9  # such tokens stay short, and are not cut
    flat = [each.flatten(0, 1).flatten(1) for each in (positive, negative)]
    assert (
        off(
            Leading.of(nag, "cpu", torch.float32)(positive, negative).flatten(0, 1).flatten(1), by_the_paper(*flat, nag)
        )
        < 1e-6
    )


def test_a_token_of_zeros_stays_finite(randn: Callable) -> None:
    zero, some = torch.zeros(1, 1, 2, 4), randn(1, 1, 2, 4)
    lead = Leading.of(NAG, "cpu", torch.float32)
    assert not lead(zero, some).any() and not lead(zero, zero).any()
    assert torch.isfinite(lead(some, zero)).all()


class Processor:
    """A processor for diffusers' attention to texts. Row 0 is led away from the text of row 1."""

    _attention_backend = _parallel_config = None

    def __init__(self, nag: Nag) -> None:
        self.nag = nag

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.norm_q(attn.to_q(hidden_states)))
        key, value = heads(attn.norm_k(attn.to_k(encoder_hidden_states))), heads(attn.to_v(encoder_hidden_states))
        read = [scaled_dot_product_attention(query[:1], key[n : n + 1], value[n : n + 1]) for n in (0, 1)]
        own, other = (each.transpose(1, 2).flatten(2)[0] for each in read)
        led = by_the_paper(own, other, self.nag).to(own).expand(2, -1, -1)
        if attn.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(attn.to_gate_logits(hidden_states))
            led = (led.unflatten(2, (attn.heads, -1)) * gates[..., None]).flatten(2)
        return attn.to_out[0](led)


def reference(run: Case, video: Tensor | None, audio: Tensor | None) -> Tokens:
    """diffusers' own forward with two rows, of which the first is led. video, audio: the negative texts."""
    two = copy.copy(run)
    for name in ("sigma", "sound", "levels", "sound_levels", "marked"):
        own = getattr(run, name)
        setattr(two, name, own.repeat(2, *[1] * (own.ndim - 1)))
    two.x = run.x.map(lambda own: own.repeat(2, 1, 1))
    two.where = tuple(own.repeat(2, *[1] * (own.ndim - 1)) for own in run.where)
    for name, negative in (("text", video), ("heard", audio)):
        own = getattr(run, name)
        setattr(two, name, torch.cat((own, own if negative is None else negative)))
    for block in run.model.transformer_blocks:
        for attention, negative in ((block.attn2, video), (block.audio_attn2, audio)):
            if negative is not None:
                attention.processor = Processor(NAG)
    return Tokens(*(stream[:1] for stream in by_diffusers(two)))


@pytest.mark.parametrize(("streams", "frozen"), [((True, False), True), ((True, True), False)], ids=["kept", "made"])
def test_equals_diffusers_with_a_processor(
    model: nn.Module, off: Callable, randn: Callable, streams: tuple[bool, bool], frozen: bool
) -> None:
    run = Case(model, randn, frozen=frozen)
    negatives = [randn(*own.shape) if led else None for own, led in zip((run.text, run.heard), streams, strict=True)]
    plain = run.ours()
    (ours,) = run.run([Pass(run.text, run.heard, led=Led(Leading.of(NAG, "cpu", torch.float32), *negatives))])
    theirs = reference(run, *negatives)
    assert off(ours.video, theirs.video) < 1e-5 and off(ours.audio, theirs.audio) < 1e-5
    assert off(ours.video, plain.video) > 1e-3, "it acts"


def passes(run: Case, negative: tuple[Tensor, Tensor], led: tuple[bool, bool]) -> list[Pass]:
    """A guided step: cond, uncond with the audio's own text where that is led, STG, isolated."""
    away = Led(
        Leading.of(NAG, "cpu", torch.float32), *(text if own else None for text, own in zip(negative, led, strict=True))
    )
    return [
        Pass(run.text, run.heard, led=away),
        Pass(negative[0], run.heard, led=away._replace(video=None)),
        Pass(run.text, run.heard, (1,), led=away),
        Pass(run.text, run.heard, isolated=True, led=away),
    ]


@pytest.mark.parametrize("led", [(True, False), (True, True), (False, True)], ids=str)
def test_passes_in_one_batch_are_the_passes_alone(
    model: nn.Module, off: Callable, randn: Callable, led: tuple[bool, bool]
) -> None:
    """Also with keys and values that were kept, and where an STG pass begins as a copy."""
    run = Case(model, randn, frozen=False)
    negative = randn(*run.text.shape), randn(*run.heard.shape)
    step = passes(run, negative, led)
    alone = [run.run([each])[0] for each in step]
    kept = KeptTexts(1e9)
    for batched in (True, False):
        for texts in (None, kept, kept):
            together = run.run(step, batched=batched, texts=texts)
            for ours, theirs in zip(together, alone, strict=True):
                assert off(ours.video, theirs.video) < 1e-5 and off(ours.audio, theirs.audio) < 1e-5


def test_one_prompt_for_both_changes_nothing(model: nn.Module, randn: Callable) -> None:
    run = Case(model, randn, frozen=False)
    plain = run.ours()
    (ours,) = run.run([Pass(run.text, run.heard, led=Led(Leading.of(NAG, "cpu", torch.float32), run.text, run.heard))])
    assert torch.equal(ours.video, plain.video) and torch.equal(ours.audio, plain.audio)


@pytest.mark.parametrize("nag", [Nag(scale=1), Nag(alpha=0)], ids=["scale", "alpha"])
def test_neutral_settings_are_none(nag: Nag) -> None:
    sigmas = torch.tensor([1.0, 0.0])
    assert Steering(sigmas, nag=nag).nag is None and Steering(sigmas, nag=Nag()).nag is not None


def test_it_needs_a_negative_prompt() -> None:
    steering = Steering(torch.tensor([1.0, 0.0]), nag=Nag())
    steering.check(True)
    with pytest.raises(InputError, match=r"^negative prompt: missing, and NAG leads away from it; connect one "):
        steering.check(True, negative=False)


@pytest.mark.parametrize(
    ("value", "nag"),
    [(None, None), (False, None), (True, Nag()), ({}, Nag()), ({"scale": 5, "tau": 2}, Nag(5, tau=2))],
    ids=str,
)
def test_values_of_a_request(value: Any, nag: Nag | None) -> None:
    assert Nag.parse(value) == nag


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (3, r"^nag: the value is not true, false or an object like \{"),
        ({"strength": 1}, "^nag: 'strength' is unknown; use scale, alpha, tau"),
        ({"scale": 0.5}, "^nag: scale is 0.5; give a number from 1 to 100"),
        ({"alpha": "much"}, "^nag: alpha is 'much'; give a number from 0 to 1"),
        ({"alpha": True}, "^nag: alpha is True; "),
        ({"tau": float("nan")}, "^nag: tau is nan; give a number from 1 to 10"),
    ],
    ids=str,
)
def test_wrong_values(value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Nag.parse(value)


def test_in_16_bits(off: Callable, randn: Callable) -> None:
    positive, negative = randn(1, 9, 4, 16), randn(1, 9, 4, 16)
    half = Leading.of(Nag(), "cpu", torch.bfloat16)(positive.bfloat16(), negative.bfloat16())
    assert half.dtype == torch.bfloat16
    assert off(half, Leading.of(Nag(), "cpu", torch.float32)(positive, negative)) < 0.02
