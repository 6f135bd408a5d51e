"""An optimizer for few steps: matrices move by orthogonalized momentum (Muon), everything else by AdamW.

Muon: K. Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks"; the update's size is scaled to
AdamW's usual one (Liu et al., 2025), so both take the same learning rate. A convolution counts as the matrix from its
inputs, taps included, to its outputs; its gradient is centred over them (Yong et al., 2020), since features after SiLU
have a mean, and what moves all their weights together belongs to the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the reference above
ITERATIONS = 5


def quick(device: str) -> torch.dtype:
    """bfloat16, or float32 on a processor without it, where bfloat16 takes a hundred times as long."""
    native = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    x = matrix.to(quick(matrix.device.type))
    flat = x.shape[0] > x.shape[1]
    x = x.mT if flat else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if flat else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with `matrix` True take Muon's step, others AdamW's; all share lr."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        groups = [{"params": list(p), "matrix": m} for p, m in ((matrices, True), (others, False))]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["first"] = torch.zeros_like(p)
                    if not group["matrix"]:
                        state["second"] = torch.zeros_like(p)
                state["step"] += 1
                if decay:
                    p.mul_(1 - lr * decay)
                if group["matrix"]:
                    first, m = state["first"], group["momentum"]
                    first.lerp_(p.grad, 1 - m)
                    update = p.grad.lerp(first, m).flatten(1)
                    if p.ndim > 2:
                        update = update - update.mean(1, keepdim=True)
                    update = orthogonalized(update)
                    size = 0.2 * math.sqrt(max(update.shape))
                    p.add_(update.view_as(p), alpha=-lr * size)
                else:
                    (b1, b2), n = group["betas"], float(state["step"])
                    state["first"].lerp_(p.grad, 1 - b1)
                    state["second"].lerp_(p.grad.square(), 1 - b2)
                    scale = (state["second"] / (1 - b2**n)).sqrt_().add_(1e-8)
                    p.addcdiv_(state["first"], scale, value=-lr / (1 - b1**n))
