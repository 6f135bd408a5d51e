"""Schedules against the goldens, ltx-core's schedulers and the numbers in the design."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion import schedules
from a2v.ltx.errors import InputError
from safetensors import safe_open


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
def test_goldens(oracle: Path, name: str) -> None:
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        info = json.loads(golden.metadata()["info"])
        first, second = golden.get_tensor("s1/sigmas"), golden.get_tensor("s2/sigmas")
    sigmas = schedules.SCHEDULES[info["scheduler"]](info["steps"])
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, first, rtol=0, atol=1e-7)
    assert torch.equal(torch.tensor(schedules.REFINE), second)


@pytest.mark.parametrize("name", ["ltx2", "linear_quadratic", "beta"])
def test_peer_at_every_step_count(name: str) -> None:
    peers = pytest.importorskip("ltx_core.components.schedulers")
    peer = {
        "ltx2": peers.LTX2Scheduler,
        "linear_quadratic": peers.LinearQuadraticScheduler,
        "beta": peers.BetaScheduler,
    }[name]()
    for steps in [*range(2, 51), 200]:
        assert torch.equal(schedules.SCHEDULES[name](steps), peer.execute(steps)), steps


def test_ltx2_as_published() -> None:
    numbers = ".98725 .972823 .956368 .937421 .915374 .889394 .858329 .820523 .773514 .713477 .634123 .524345 .362494"
    expected = torch.tensor([1.0, *map(float, numbers.split()), 0.1, 0.0])
    torch.testing.assert_close(schedules.ltx2(15), expected, rtol=0, atol=1e-6)


def test_linear_quadratic_by_hand() -> None:
    # N=4: n=2, D=1.9, a=1.9/8, l=.0125-.95, c=.95; y = 0, .0125, .025, 1 - ...
    y = [0.0, 0.0125, 0.2375 * 4 - 0.9375 * 2 + 0.95, 0.2375 * 9 - 0.9375 * 3 + 0.95, 1.0]
    torch.testing.assert_close(schedules.linear_quadratic(4), 1 - torch.tensor(y), rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 15, 50])
@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
def test_falls_from_one_to_zero(name: str, steps: int) -> None:
    sigmas = schedules.SCHEDULES[name](steps)
    assert sigmas[0].item() == pytest.approx(1, abs=5e-7)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert len(sigmas) == steps + 1


def test_beta_drops_duplicate_timesteps() -> None:
    sigmas = schedules.beta(3000)  # close to both ends the quantiles lie under one of the 10000 timesteps apart
    assert 2 < len(sigmas) < 3001
    assert (sigmas.diff() < 0).all()


def test_order_and_constants() -> None:
    assert list(schedules.SCHEDULES) == ["ltx2", "linear_quadratic", "beta"]
    assert schedules.DISTILLED == (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(name: str, steps: int) -> None:
    with pytest.raises(InputError, match=f"num_inference_steps is {steps}"):
        schedules.SCHEDULES[name](steps)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0], "has no step"),
        ([[1.0, 0.0]], "has no step"),
        ([1.0, float("nan"), 0.0], "must be above 0"),
        ([1.0, 0.0, 0.0], "must be above 0"),
        ([1.0, 0.5, -0.1], "must be above 0"),
        ([1.001, 0.5, 0.0], "at most 1"),
        ([1.0, 0.4, 0.5, 0.0], "the values rise"),
    ],
)
def test_a_schedule_that_cannot_be_used(sigmas: list, words: str) -> None:
    with pytest.raises(InputError, match=rf"^sigmas .*{words}"):
        schedules.checked(torch.tensor(sigmas))


def test_a_schedule_that_can_be_used() -> None:
    assert schedules.checked(torch.tensor([1.00005, 0.5, 0.5, 0.0])).tolist() == [1.0, 0.5, 0.5, 0.0]
    with pytest.raises(InputError, match=r"^sigmas is \[2, 2, 2, 2, 2, 2, 2, 2\]: "):
        schedules.checked(torch.full((8,), 2.0))
    with pytest.raises(InputError, match=r"^sigmas is \[2, 2, 2, 2, 2, 2, 2, 2, …\]: "):
        schedules.checked(torch.full((9,), 2.0))
