"""Attention backends: the plain formula gives torch's numbers; what cannot compute here is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx import sampling
from a2v.ltx.computing import ATTENTION, MATH, TORCH
from a2v.ltx.diffusion import attention
from a2v.ltx.diffusion.attention import BACKENDS, attend_by, check_attention
from a2v.ltx.errors import InputError
from a2v.ltx.job import Compute, Files, prepare
from a2v.ltx.request import parse
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import QuantizedLinear
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.tiny import TinyFiles

SPEECH = Path(__file__).resolve().parents[3] / "assets" / "speech.opus"
FOREIGN = [name for name, backend in BACKENDS.items() if backend.package]


def test_the_command_offers_every_backend() -> None:
    assert list(BACKENDS) == list(ATTENTION)


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


def test_a_job_computes_as_it_is_asked_to(tiny_default: TinyFiles, tmp_path: Path) -> None:
    """Its transformer has the backend, and the fused kernels and fast products where it asks for them."""
    files = Files(
        checkpoint=tiny_default.checkpoint, text_encoder=tiny_default.gemma, audio=SPEECH, output=tmp_path / "x.mp4"
    )
    job = prepare(files, parse({"prompt": "x", "use_multiscale": False, "enable_safety_checker": False}))
    for name, chosen in ((MATH, True), (TORCH, False)):
        compute = Compute(torch.float32, fp8=True, attention=name, fused=chosen, fast_products=chosen)
        made = sampling._Transformer(job, compute, None, lambda done, total: None)
        found = {p._attention_backend for m in made.model.modules() if (p := getattr(m, "processor", None))}
        assert found == {None if name == TORCH else BACKENDS[name].name}
        assert any(getattr(m, "fused", False) for m in made.model.modules()) is chosen
        assert {m.fast for m in made.model.modules() if isinstance(m, QuantizedLinear)} == {chosen}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_installed_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"attention: '{name}' needs the package .*, which is not installed here"):
        Compute(torch.bfloat16, "cuda", attention=name)


def test_other_mistakes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="attention: 'fast' is unknown; choose one of torch, math, sage"):
        Compute(attention="fast")
    monkeypatch.setattr(attention, "_check_attention_backend_requirements", lambda backend: None)  # as if installed
    with pytest.raises(InputError, match="'sage' computes on GPUs by NVIDIA and AMD only"):
        check_attention("sage", "cpu", torch.bfloat16)
    with pytest.raises(InputError, match="'sage' computes in 16 bits only"):
        check_attention("sage", "cuda", torch.float32)
    check_attention("sage", "cuda", torch.bfloat16)
