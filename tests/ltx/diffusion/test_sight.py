"""What groups of tokens see of each other: against attention with the whole matrix of weights, and the official one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from a2v.ltx.computing import MATH
from a2v.ltx.diffusion.attention import BACKENDS, attend_by, taking_weights
from a2v.ltx.diffusion.sight import Sight, attend_in_groups
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.diffusion.one_pass import Case, guided_step
from a2v.tests.tiny import TinyFiles
from torch import Tensor

GROUPS = [
    (6, 0, [(4, 0.5)]),
    (6, 3, [(4, 0.5)]),
    (6, 3, [(4, 0.0)]),
    (6, 2, [(4, 1.0), (5, 0.3)]),
    (6, 2, [(4, 0.3), (5, 1.0)]),
    (6, 0, [(4, 0.3), (5, 0.7)]),
]


def test_without_a_weight_all_see_all() -> None:
    assert Sight.of(6, 3, []) is None and Sight.of(6, 3, [(4, 1.0)]) is None


@pytest.mark.parametrize(("grid", "keyframes", "references"), GROUPS)
def test_the_matrix_is_that_of_the_official_rule(
    grid: int, keyframes: int, references: list[tuple[int, float]]
) -> None:
    """Built as the official pipeline does: token by token, each reference after those before it."""
    count, matrix = grid + keyframes, None
    for size, attention in references:
        if attention == 1 and matrix is None:
            count += size
            continue
        total = count + size
        larger = torch.zeros(total, total)
        larger[:count, :count] = 1 if matrix is None else matrix
        larger[count:, count:] = 1
        larger[:grid, count:] = attention
        larger[count:, :grid] = attention
        matrix, count = larger, total
    assert torch.equal(Sight.of(grid, keyframes, references).matrix()[0], matrix)


@pytest.mark.parametrize(("grid", "keyframes", "references"), GROUPS)
def test_groups_attend_as_the_whole_matrix_does(
    grid: int, keyframes: int, references: list[tuple[int, float]], randn: Callable[..., Tensor]
) -> None:
    sight = Sight.of(grid, keyframes, references)
    count = sum(sight.sizes)
    query, key, value = (randn(2, count, 3, 8) for _ in range(3))

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        swapped = (each.transpose(1, 2) for each in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*swapped, attn_mask=bias).transpose(1, 2)

    found = attend_in_groups(sight.views(torch.device("cpu"), torch.float32), query, key, value, attend)
    wanted = attend(query, key, value, sight.matrix().log()[:, None])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", [0.0, 0.3])
def test_a_guided_step_sees_by_weights(tiny_default: TinyFiles, randn: Callable, attention: float) -> None:
    """In one batch as in single passes, and by the plain formula as by torch. The weights change what comes out."""
    model = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)
    run = Case(model, randn, image=0.4)
    views = Sight.of(6, 2, [(4, attention)]).views(torch.device("cpu"), torch.float32)
    together, single = (run.run(guided_step(run), batched=batched, views=views) for batched in (True, False))
    for one, other in zip(together, single, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-4, atol=1e-5)
    attend_by(model, MATH)
    for one, other in zip(together, run.run(guided_step(run), views=views), strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=1e-4, atol=1e-5)
    plain = run.run(guided_step(run))
    assert all((one.video - other.video).abs().max() > 1e-4 for one, other in zip(together, plain, strict=True))


def test_what_is_not_seen_changes_nothing(tiny_default: TinyFiles, randn: Callable) -> None:
    """A group that the clip does not see can be anything; at a small weight it acts."""
    model = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)
    run = Case(model, randn)

    def clip(attention: float) -> Tensor:
        views = Sight.of(8, 0, [(4, attention)]).views(torch.device("cpu"), torch.float32)
        (one, *_) = run.run(guided_step(run)[3:], views=views)  # isolated: nothing passes through the sound
        return one.video[:, :8]

    before = clip(0.0), clip(0.1)
    run.x.video[:, 8:] += 1
    assert torch.equal(before[0], clip(0.0))
    assert (before[1] - clip(0.1)).abs().max() > 1e-4


def test_packages_leave_weights_to_torch() -> None:
    for name, backend in BACKENDS.items():
        wanted = MATH if name == MATH else "torch"
        assert taking_weights(backend.name) == BACKENDS[wanted].name
    assert taking_weights(None) == BACKENDS["torch"].name
