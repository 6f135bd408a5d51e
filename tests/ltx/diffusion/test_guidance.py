"""Guidance against the goldens' passes, ltx-core's guider and the closed formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.guidance import NONE, Guidance, default_stg_blocks
from a2v.ltx.errors import InputError
from safetensors import safe_open


@pytest.fixture
def predictions() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 50, 16, generator=generator) for _ in range(4)]


SCALES = [
    {"cfg": 3.0, "stg": 1.0, "rescale": 0.85, "modality": 3.0},
    {"cfg": 3.0, "stg": 1.0, "rescale": 0.0, "modality": 3.0},
    {"cfg": 7.0, "rescale": 0.7},
    {"stg": 0.5, "rescale": 1.0},
    {"modality": 0.0, "rescale": 0.3},
    {"cfg": 0.5, "modality": 2.0},
]


@pytest.mark.parametrize("scales", SCALES)
def test_peer(predictions: list[torch.Tensor], scales: dict[str, float]) -> None:
    guiders = pytest.importorskip("ltx_core.components.guiders")
    guidance = Guidance(**scales)
    params = guiders.MultiModalGuiderParams(
        cfg_scale=guidance.cfg,
        stg_scale=guidance.stg,
        rescale_scale=guidance.rescale,
        modality_scale=guidance.modality,
    )
    peer = guiders.MultiModalGuider(params)
    runs = (guidance.runs_uncond, guidance.runs_perturbed, guidance.runs_isolated)
    assert runs == (
        peer.do_unconditional_generation(),
        peer.do_perturbed_generation(),
        peer.do_isolated_modality_generation(),
    )
    cond, *others = predictions
    expected = peer.calculate(cond, *(other if run else 0.0 for run, other in zip(runs, others, strict=True)))
    guided = guidance.combine(cond, *(other if run else None for run, other in zip(runs, others, strict=True)))
    assert torch.equal(guided, expected)


@pytest.mark.parametrize("scales", SCALES)
def test_closed_formula(predictions: list[torch.Tensor], scales: dict[str, float]) -> None:
    guidance = Guidance(**scales)
    c, u, g, m = (p.double() for p in predictions)
    p = c + (guidance.cfg - 1) * (c - u) + guidance.stg * (c - g) + (guidance.modality - 1) * (c - m)
    r = guidance.rescale
    p = p * (r * c.std() / p.std() + 1 - r)
    torch.testing.assert_close(guidance.combine(*predictions), p.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
def test_goldens(oracle: Path, name: str) -> None:
    """The first step's four passes make its x0, on every token whose mask is 1."""
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        info = json.loads(golden.metadata()["info"])
        passes = [golden.get_tensor(f"s1/step0/call{j}/video_x0") for j in range(4)]
        mask = golden.get_tensor("s1/step0/call0/video_timesteps") / golden.get_tensor("s1/sigmas")[0]
        expected = golden.get_tensor("s1/step0/x0_video")
    guidance = Guidance(info["cfg"], info["stg"], info["rescale"], info["modality"], tuple(info["stg_blocks"]))
    free = mask.flatten() == 1
    assert free.any()
    guided = guidance.combine(*passes)
    torch.testing.assert_close(guided[:, free], expected[:, free], rtol=1e-6, atol=1e-6)


def test_neutral_runs_one_pass(predictions: list[torch.Tensor]) -> None:
    assert NONE.passes == 1
    assert torch.equal(NONE.combine(predictions[0]), predictions[0])
    assert torch.equal(Guidance(rescale=0.85).combine(predictions[0]), predictions[0])
    assert Guidance(cfg=3, stg=1, modality=3).passes == 4


def test_half_precision_is_combined_in_float32(predictions: list[torch.Tensor]) -> None:
    halves = [p.bfloat16() for p in predictions]
    guidance = Guidance(cfg=3, stg=1, rescale=0.85, modality=3)
    guided = guidance.combine(*halves)
    assert guided.dtype == torch.float32
    assert torch.equal(guided, guidance.combine(*(h.float() for h in halves)))


def test_missing_pass_is_a_fault(predictions: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="missing"):
        Guidance(cfg=3).combine(predictions[0])


@pytest.mark.parametrize(("layers", "block"), [(48, 28), (4, 2), (28, 16), (2, 1), (1, 0)])
def test_default_block(layers: int, block: int) -> None:
    assert default_stg_blocks(layers) == (block,)
    assert Guidance(stg=1).blocks(layers) == (block,)


def test_blocks_in_range() -> None:
    assert Guidance(stg=1, stg_blocks=(0, 3)).blocks(4) == (0, 3)
    with pytest.raises(InputError, match="stg_blocks names block 4, and this model has blocks 0 to 3"):
        Guidance(stg=1, stg_blocks=(0, 4)).blocks(4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cfg", -1.0),
        ("stg", float("nan")),
        ("rescale", 1.5),
        ("rescale", -0.1),
        ("modality", float("inf")),
        ("stg_blocks", (-1,)),
        ("stg_blocks", (1.5,)),
    ],
)
def test_invalid(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field} is"):
        Guidance(**{field: value})
