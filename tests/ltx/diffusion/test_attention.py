"""Attention backends: the plain formula gives torch's numbers; what cannot compute here is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from a2v.ltx.diffusion import attention
from a2v.ltx.diffusion.attention import BACKENDS, MATH, TORCH, attend_by, check_attention
from a2v.ltx.errors import InputError
from a2v.ltx.job import Compute
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.tiny import TinyFiles

FOREIGN = [name for name, backend in BACKENDS.items() if backend.package]


def test_the_plain_formula_gives_torchs_numbers(
    tiny_default: TinyFiles, randn: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)
    run, used = Case(model, randn), []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        used.append(torch.backends.cuda.flash_sdp_enabled())
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    expected = run.run(guided_step(run))
    assert used and all(used)
    used.clear()
    attend_by(model, MATH)
    found = run.run(guided_step(run))
    assert used and not any(used)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.video - theirs.video).norm() <= 1e-6 * theirs.video.norm()
    used.clear()
    attend_by(model, TORCH)
    run.run(guided_step(run))
    assert all(used)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_installed_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"attention: '{name}' needs the package .*, which is not installed here"):
        Compute(torch.bfloat16, "cuda", attention=name)


def test_other_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="attention: 'fast' is unknown; choose one of torch, math, sage"):
        Compute(attention="fast")
    monkeypatch.setattr(attention, "_check_attention_backend_requirements", lambda backend: None)  # as if installed
    with pytest.raises(InputError, match="'sage' computes on a GPU only"):
        check_attention("sage", "cpu", torch.bfloat16)
    with pytest.raises(InputError, match="'sage' computes in 16 bits only"):
        check_attention("sage", "cuda", torch.float32)
    check_attention("sage", "cuda", torch.bfloat16)
