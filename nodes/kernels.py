"""The node that chooses how the transformer computes: attention, fused kernels, and products of quantized weights."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as management
from comfy_api.latest import io

from ..ltx import fused
from ..ltx.computing import TORCH
from ..ltx.diffusion.attention import BACKENDS, check_attention
from ..ltx.weights.quantized import QuantizedLinear
from . import files, memory
from .progress import reported
from .types import CATEGORY, ModelIO
from .widgets import aliases

INEXACT = ", ".join(name for name, backend in BACKENDS.items() if not backend.exact)
EXACT = ", ".join(name for name, backend in BACKENDS.items() if backend.exact)


class Kernels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VKernels",
            display_name="LTX A2V Kernels",
            category=f"{CATEGORY}/Sampling",
            description="Chooses how the transformer computes on a GPU. The defaults are exact and need no further "
            "package. Place it between Load Model and Distilled LoRA, so that it acts in both stages.",
            **aliases("sage attention", "flash attention"),
            inputs=[
                ModelIO.Input("model", tooltip="From Load Model or a LoRA."),
                io.Combo.Input(
                    "attention",
                    options=list(BACKENDS),
                    default=TORCH,
                    tooltip=f"What computes attention. Exact: {EXACT}. Not exact, because queries and keys are rounded "
                    f"to 8 bits: {INEXACT}. All but torch and math need a package and a GPU.",
                ),
                io.Boolean.Input(
                    "fused",
                    default=True,
                    tooltip="Triton kernels of this pack for norms, rotation and gates, exact to the rounding. They "
                    "run on a GPU if Triton is installed, also without this node.",
                ),
                io.Boolean.Input(
                    "fast_products",
                    default=False,
                    tooltip="Multiplies fp8, int8, NVFP4 and MXFP8 weights in their own format where the card can, "
                    "instead of decoding them. Not exact: the inputs are rounded, too. All but fp8 need comfy-kitchen.",
                ),
            ],
            outputs=[
                ModelIO.Output("computing", display_name="model", tooltip="For Distilled LoRA, a LoRA or a sampler."),
                io.String.Output("report", display_name="report", tooltip="Says what is chosen, and if it is exact."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, attention: str | None = None) -> bool | str:
        return files.verdict(lambda name: check_attention(name, management.get_torch_device(), None), attention)

    @classmethod
    def execute(cls, model: memory.Model, attention: str, fused: bool, fast_products: bool) -> io.NodeOutput:
        check_attention(attention, model.module.device, model.module.proj_in.weight.dtype)
        changed = replace(model, attention=attention, fused=fused, fast_products=fast_products)
        return reported(cls, changed, text="; ".join(_told(changed)))


def _told(model: memory.Model) -> list[str]:
    """What is chosen, and what has no effect here."""
    exact = "exact" if BACKENDS[model.attention].exact else "not exact"
    notes = [f"attention by {model.attention} ({exact})"]
    why = fused.obstacle(model.module.device)
    if not model.fused:
        notes.append("no fused kernels")
    else:
        notes.append(f"no fused kernels: {why}" if why else "fused kernels")
    if model.fast_products:
        quantized = any(isinstance(layer, QuantizedLinear) for layer in model.module.modules())
        fast = "fast products where the card has them (not exact)"
        notes.append(fast if quantized else "no fast products, because the weights are not quantized")
    return notes


NODES = (Kernels,)
